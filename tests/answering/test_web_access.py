"""Who may ask: passwords, hosts and origins."""

import pytest

from flan_qa_pipeline.answering.web_access import Credentials, check_access, is_loopback
from flan_qa_pipeline.errors import InputError

GIVEN = Credentials(username="ann", password="a pass")  # noqa: S106
OF_ENVIRONMENT = {"FLAN_QA_USERNAME": "bob", "FLAN_QA_PASSWORD": "word"}


@pytest.mark.parametrize(
    ("environment", "stored", "found"),
    [
        ({}, {}, None),
        ({}, {"other": {"key": "value"}}, None),
        ({}, {"serving": {"username": "ann", "password": "a pass"}}, GIVEN),
        (OF_ENVIRONMENT, {"serving": {"username": "ann", "password": "a pass"}}, ("bob", "word")),
    ],
)
def test_credentials_come_from_the_environment_or_else_from_the_project(environment, stored, found):
    credentials = Credentials.find(environment, stored)
    if isinstance(found, tuple):
        found = Credentials(username=found[0], password=found[1])
    assert credentials == found


@pytest.mark.parametrize(
    ("environment", "stored", "lacks"),
    [
        ({"FLAN_QA_USERNAME": "bob"}, {}, "password"),
        ({"FLAN_QA_PASSWORD": "word"}, {}, "username"),
        ({"FLAN_QA_USERNAME": "", "FLAN_QA_PASSWORD": "word"}, {}, "username"),
        ({}, {"serving": {"username": "ann"}}, "password"),
        ({}, {"serving": {"username": "ann", "password": 12345}}, "password"),
        ({}, {"serving": {"username": "ann", "password": "päss"}}, "password"),
        ({}, {"serving": {"username": "a:n", "password": "word"}}, "username"),
        ({}, {"serving": "ann"}, "mapping"),
    ],
)
def test_half_of_the_credentials_is_refused_without_showing_it(environment, stored, lacks):
    with pytest.raises(InputError, match=f"lack a valid {lacks}; set FLAN_QA_USERNAME") as refused:
        Credentials.find(environment, stored)
    assert "12345" not in str(refused.value) and "päss" not in str(refused.value)


def test_a_password_is_compared_whole_and_not_shown():
    assert GIVEN.match("ann", "a pass")
    for username, password in (("ann", "apass"), ("ann", ""), ("", "a pass"), ("anna", "a pass")):
        assert not GIVEN.match(username, password)
    assert "a pass" not in repr(GIVEN)


@pytest.mark.parametrize(
    ("host", "beyond"),
    [
        ("127.0.0.1", False),
        ("127.0.0.9", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),  # noqa: S104
        ("::", True),
        ("192.0.2.1", True),
        ("example.com", True),
    ],
)
def test_a_host_beyond_this_machine_asks_for_a_password_or_is_opened(
    parameters, caplog, host, beyond
):
    assert is_loopback(host) != beyond
    closed = parameters.serving.model_copy(update={"host": host})
    check_access(closed, GIVEN)
    if beyond:
        with pytest.raises(InputError, match=f"{host} without a password; set .*serving.open=true"):
            check_access(closed, None)
    else:
        check_access(closed, None)
    assert "Other machines can reach" not in caplog.text
    check_access(closed.model_copy(update={"open": True}), None)
    assert ("Other machines can reach" in caplog.text) == beyond
