"""Passwords in URIs are removed whole from everything that is shown or stored."""

import pytest

from jobs.tracking.server import redact


def test_passwords_are_left_out():
    assert redact("see postgresql+psycopg://me:s3cr:et@db:5432/x") == "see postgresql+psycopg://me:***@db:5432/x"
    for harmless in ("http://localhost:5000/a@b", "https://host/a:b@c", "sqlite:////home/me/ledger.db", "me:pw@host"):
        assert redact(harmless) == harmless


@pytest.mark.parametrize("password", ["secret", "se/cr:et", "se@cr@et", "s@e/c?r", "12/34", "se%40ret"])
@pytest.mark.parametrize("place", ["postgresql+psycopg://me:{}@db:5432/x?sslmode=require", "mysql://me:{}@db/x"])
def test_no_part_of_a_password_remains(password, place):
    uri = place.format(password)
    for text in (uri, f"uri: '{uri}'", f"can't reach {uri} now"):
        assert redact(text) == text.replace(password, "***")
        assert redact(text, mask="") == text.replace(f":{password}", "")


def test_passwords_of_servers_and_queries():
    assert redact("at http://me:p@ss@host:5000/a@b?") == "at http://me:***@host:5000/a@b?"
    assert "a/b" not in redact("http://me:a/b@host:5000")
    assert redact("postgresql://db/x?user=me&password=secret&a=b") == "postgresql://db/x?user=me&password=***&a=b"
