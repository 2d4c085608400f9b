# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What servers and proxies mean that do not answer."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _refusal
from ansible_collections.baremetal.nim.tests.unit.refusals import DEAD, HAPROXY_503, NGINX_502, OVERLOADED


@pytest.mark.parametrize(
    ("status", "body", "failure_class", "words"),
    [
        (401, '{"error": {"message": "Unauthorized", "code": 401}}', "auth", "HTTP 401 from POST /x (Unauthorized)"),
        (403, "<html>Forbidden</html>", "auth", "HTTP 403 from POST /x (Forbidden)"),
        (404, '{"error": {"message": "The model `m` does not exist."}}', "wrong_model", "`m` does not exist"),
        (404, '{"object": "error", "message": "The model `m` does not exist."}', "wrong_model", "`m` does not exist"),
        (404, '{"detail": "Not Found"}', "bad_response", "Not Found"),
        (400, '{"detail": [{"loc": ["body"], "msg": "field required"}]}', "bad_response", "field required"),
        (301, "", "bad_response", "HTTP 301 from POST /x, wanted HTTP 200"),
        (500, '{"error": {"message": "EngineCore encountered an issue."}}', "dead_engine", "EngineCore"),
        (502, "<html>\n<h1>502 Bad Gateway</h1>\n</html>", "dead_engine", "502 Bad Gateway"),
        (
            400,
            '{"error": {"message": "Blocked by content policy", "code": "content_filter"}}',
            "refused_by_policy",
            "Blocked",
        ),
        (403, '{"detail": "Request violates the usage policy"}', "refused_by_policy", "violates the usage policy"),
        (422, '{"message": "NeMo Guardrails: input rail refused"}', "refused_by_policy", "Guardrails"),
        (500, '{"message": "guardrails service is down"}', "dead_engine", "is down"),
    ],
)
def test_http_fault(status, body, failure_class, words):
    fault = _refusal.http_fault("POST /x", status, body)
    assert (fault.failure_class, words in str(fault)) == (failure_class, True), str(fault)


def test_http_fault_passes_200():
    assert _refusal.http_fault("GET /x", 200, "anything") is None


@pytest.mark.parametrize(("status", "body", "headers"), OVERLOADED)
def test_who_has_too_much_to_do_is_no_dead_engine(status, body, headers):
    fault = _refusal.http_fault("POST /x", status, body, headers)
    assert fault.failure_class == "overloaded", str(fault)
    assert "Restart" not in fault.cure and "Wait" in fault.cure
    assert fault.patience > 3600


@pytest.mark.parametrize(("status", "body", "words"), DEAD)
def test_what_is_dead_is_recognised(status, body, words):
    fault = _refusal.http_fault("POST /x", status, body)
    assert fault.failure_class == "dead_engine", str(fault)
    assert words in str(fault)
    # A proxy is not cured by a restart of the engine alone.
    assert ("Restart" in fault.cure) == ("proxy" not in str(fault))


def test_a_model_that_is_loading_is_waited_for():
    body = '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
    fault = _refusal.http_fault("POST /x", 503, body)
    assert (fault.failure_class, fault.patience > 3600) == ("starting", True)


@pytest.mark.parametrize(
    ("headers", "said", "seconds"),
    [
        ({}, "", None),
        ({"Retry-After": "3"}, "", 3.0),
        ({"retry-after": " 0.5 "}, "", 0.5),
        ({"Retry-After-Ms": "250", "Retry-After": "1"}, "", 0.25),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:10 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, "", 10.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:27:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, "", 0.0),
        ({"Retry-After": "soon"}, "", None),
        ({"Retry-After": "-5"}, "", None),
        ({"Retry-After": "nan"}, "", None),
        ({}, "Rate limit reached. Please try again in 20s.", 20.0),
        ({}, "Please retry after 10 seconds.", 10.0),
        ({}, "No deployments available, Try again in 2 minutes.", 120.0),
        ({}, "try again in 500ms", 0.5),
        ({}, "Please try again later.", None),
        ({"Retry-After": "1"}, "try again in 9 s", 1.0),
    ],
)
def test_retry_after(headers, said, seconds):
    assert _refusal.retry_after(headers, said) == seconds


@pytest.mark.parametrize(
    ("document", "failure_class"),
    [
        (
            {
                "error": {
                    "message": "maximum context length is 4096 tokens",
                    "type": "invalid_request_error",
                    "code": "400",
                }
            },
            "bad_response",
        ),
        ({"error": {"message": "maximum context length", "code": "context_length_exceeded"}}, "bad_response"),
        ({"error": {"message": "Rate limit reached", "type": "rate_limit", "code": 429}}, "overloaded"),
        ({"error": {"message": "slow down", "type": "RateLimitError"}}, "overloaded"),
        ({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, "overloaded"),
        ({"error": {"message": "Authentication Error, expired key", "type": "auth_error", "code": 401}}, "auth"),
        ({"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}, "auth"),
        (
            {"error": {"message": "Blocked by content policy", "type": "content_filter", "code": 400}},
            "refused_by_policy",
        ),
        ({"error": {"message": "The model does not exist", "type": "NotFoundError", "code": 404}}, "wrong_model"),
        ({"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}, "wrong_model"),
        ({"text": "rate", "error_code": 42901}, "overloaded"),
        ({"status": 429, "title": "Too Many Requests"}, "overloaded"),
        ({"error": "something broke"}, "dead_engine"),
        ("just words", "dead_engine"),
    ],
)
def test_error_documents(document, failure_class):
    fault = _refusal.error_fault("the stream of POST /x", document)
    assert fault.failure_class == failure_class
    assert str(fault).startswith("the stream of POST /x broke off: ") and fault.evidence


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "error",
        {"choices": [], "usage": {}},
        {"choices": [{"delta": {"content": "error"}}], "error": None},
        {"choices": [{"delta": {}}], "detail": "x"},
        {"type": "ping"},
        {"usage": {"prompt_tokens": 1}},
    ],
)
def test_what_is_no_error(document):
    assert _refusal.error_in(document) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "a"}}', "a"),
        ('{"error": "a", "message": "b"}', "a"),
        (
            '{"detail": [{"loc": ["body", "messages"], "msg": "Field required"}, {"loc": [], "msg": "b"}]}',
            "body.messages: Field required; : b",
        ),
        ('{"type": "about:blank", "title": "Too Many Requests", "detail": "slow down"}', "slow down"),
        ('{"errors": [{"message": "a"}]}', "a"),
        ('{"status": 5}', '{"status": 5}'),
        ("<html>", "<html>"),
        (NGINX_502, "502 Bad Gateway nginx"),
        (HAPROXY_503, "503 Service Unavailable No server is available to handle this request."),
        ("<html><script>x</script>Forbidden &amp; more</html>", "Forbidden & more"),
        ("", ""),
    ],
)
def test_error_text(body, words):
    assert _refusal.error_text(body) == words
