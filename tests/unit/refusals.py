# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What servers and proxies say that do not answer, as they write it."""

from __future__ import annotations

import pytest

NGINX_503 = (
    "<html>\r\n<head><title>503 Service Temporarily Unavailable</title></head>\r\n<body>\r\n<center><h1>503 Service Temporarily\
 Unavailable</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
NGINX_502 = NGINX_503.replace("503 Service Temporarily Unavailable", "502 Bad Gateway")
ALB_503 = NGINX_503.replace("<hr><center>nginx</center>", "")
HAPROXY_503 = (
    "<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n</body></html>\n"
)
APACHE_503 = (
    "<h1>Service Unavailable</h1>\n<p>The server is temporarily unable to service your\nrequest due to maintenance downtime or\
 capacity\nproblems. Please try again later.</p>"
)
BEHIND = "reaches nothing behind it"

#: Status, body and headers of those that have too much to do.
OVERLOADED = [
    pytest.param(429, "", {}, id="429"),
    pytest.param(529, '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', {}, id="529"),
    pytest.param(503, "", {"Retry-After": "2"}, id="503 and when to come back"),
    pytest.param(503, HAPROXY_503, {"retry-after": "5"}, id="HAProxy with Retry-After"),
    pytest.param(503, NGINX_503, {}, id="nginx limit_req"),
    pytest.param(
        503,
        '{"error": {"message": "The request queue is full.", "type": "ServiceUnavailableError"}}',
        {},
        id="SGLang",
    ),
    pytest.param(500, '{"error":"[StatusCode.UNAVAILABLE] Exceeds maximum queue size"}', {}, id="Triton"),
    pytest.param(429, '{"error":"Model is overloaded","error_type":"overloaded"}', {}, id="TGI"),
    pytest.param(503, '{"error":"server busy, please try again.  maximum pending requests exceeded"}', {}, id="Ollama"),
    pytest.param(
        503, '{"error":{"code":503,"message":"no slot available","type":"unavailable_error"}}', {}, id="llama.cpp"
    ),
    pytest.param(503, "Request dropped due to backpressure (num_queued_requests=10).", {}, id="Ray Serve"),
    pytest.param(
        503,
        '{"message":"Service temporarily unavailable: All workers are busy, please retry later","code":503}',
        {},
        id="Dynamo",
    ),
    pytest.param(
        503,
        '{"error":{"message":"litellm.ServiceUnavailableError: OpenAIException - The request queue is full."}}',
        {},
        id="LiteLLM",
    ),
    pytest.param(
        503,
        "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        {},
        id="Envoy circuit breaker",
    ),
    pytest.param(503, "envoy overloaded", {}, id="Envoy overload manager"),
    pytest.param(503, "queue: pending request queue full", {}, id="Knative"),
    pytest.param(408, '{"error": "Request timed out in queue"}', {}, id="SGLang router"),
    pytest.param(
        503, '{"error":{"message":"That model is currently overloaded with other requests."}}', {}, id="OpenAI"
    ),
    pytest.param(503, '"busy"', {}, id="busy"),
]

#: Status, body and words of the verdict of what is dead.
DEAD = [
    pytest.param(
        500,
        '{"error": {"message": "EngineCore encountered an issue. See stack trace (above)."}}',
        "EngineCore",
        id="vLLM",
    ),
    pytest.param(
        503, '{"error": "EngineDeadError: the queue is full of it"}', "EngineDead", id="dead whatever else is said"
    ),
    pytest.param(500, '{"error":{"message":"Engine loop is not running."}}', "not running", id="vLLM V0"),
    pytest.param(500, "CUDA error: an illegal memory access was encountered", "illegal", id="CUDA"),
    pytest.param(502, NGINX_502, BEHIND, id="nginx"),
    pytest.param(502, "", BEHIND, id="Caddy"),
    pytest.param(503, "no healthy upstream", BEHIND, id="Envoy"),
    pytest.param(
        503,
        "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
        BEHIND,
        id="Envoy reset",
    ),
    pytest.param(503, HAPROXY_503, BEHIND, id="HAProxy"),
    pytest.param(503, "no available server", BEHIND, id="Traefik"),
    pytest.param(503, ALB_503, BEHIND, id="load balancer of a cloud"),
    pytest.param(503, APACHE_503, BEHIND, id="Apache"),
    pytest.param(503, '{"message":"failure to get a peer from the ring-balancer"}', BEHIND, id="Kong"),
    pytest.param(
        503,
        '{"error":{"message":"No available workers (all circuits open or unhealthy)"}}',
        BEHIND,
        id="SGLang router",
    ),
    pytest.param(
        500,
        '{"error":{"message":"litellm.InternalServerError: OpenAIException - Connection error."}}',
        BEHIND,
        id="LiteLLM",
    ),
    pytest.param(521, "", BEHIND, id="Cloudflare"),
    pytest.param(504, "", "a proxy that waited too long", id="504"),
    pytest.param(503, '{"detail": "no"}', "(no)", id="503 of an engine"),
]
