"""Secrets are replaced in every text, and only secrets."""

import pytest

from quant_assets.redaction import redact, redact_values

SECRET = "hf_AbC123xyz789"


@pytest.mark.parametrize(
    "variable",
    ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "db_password", "MY_SECRET", "TOKEN"],
)
def test_values_of_secret_variables_are_replaced(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, f" {SECRET}\n")
    assert redact(f"x{SECRET}y {SECRET}") == f"x<{variable}>y <{variable}>"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HF_TOKEN", "1"), ("HF_TOKEN", ""), ("HF_TOKEN", "true"), ("KEYBOARD", "keyboard-layout")],
)
def test_common_short_values_are_not_secrets(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
):
    monkeypatch.setenv(variable, value)
    text = f'{{"done": 1, "total": 11.5, "true": true, "layout": "{value}"}}'
    assert redact(text) == text


def test_a_secret_inside_another_is_replaced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-ijklmnop")
    assert redact("abcdefgh-ijklmnop abcdefgh") == "<B_TOKEN> <A_TOKEN>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host:8000/v1", "https://<redacted>@host:8000/v1"),
        ("GET https://user:p@ss@host/a?b=c#d", "GET https://<redacted>@host/a?b=c#d"),
        ("https://token@host", "https://<redacted>@host"),
        ("https://host/path@v1 and a@b.example", "https://host/path@v1 and a@b.example"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer <redacted>"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': 'Basic <redacted>'}"),
        (
            "/v1?api_key=abc&x=1&access_token=def",
            "/v1?api_key=<redacted>&x=1&access_token=<redacted>",
        ),
        ("a token of the vocabulary, key=value", "a token of the vocabulary, key=value"),
    ],
)
def test_credentials_are_recognized_by_their_form(text: str, shown: str):
    assert redact(text) == shown


def test_only_strings_change_in_json_values(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "12345678")
    values = {"n": 12345678, "x": [12345678.5, "id 12345678", None, {"12345678": True}]}
    assert redact_values(values) == {
        "n": 12345678,
        "x": [12345678.5, "id <HF_TOKEN>", None, {"12345678": True}],
    }
