"""What openai-python sees of stored answers.

    openai_answers.py live|stored|unknown BASE_URL

Ends with an exception, and so with exit code 1, when an answer is not what a user of the package would expect.
"""

import sys

import openai
from openai import OpenAI

MARK = "x-outrigger-answer"


def asks(client, prompt):
    """The same question, as a whole and as a stream; the texts and the marks."""
    question = dict(
        model="sim-model",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=9,
        temperature=0,
    )
    whole = client.chat.completions.with_raw_response.create(**question)
    text = whole.parse().choices[0].message.content
    stream = client.chat.completions.with_raw_response.create(stream=True, **question)
    chunks = [c.choices[0].delta.content or "" for c in stream.parse() if c.choices]
    return (text, "".join(chunks)), (whole.headers.get(MARK), stream.headers.get(MARK))


def live(client):
    (whole, streamed), marks = asks(client, "how deep is the lagoon?")
    assert whole and whole == streamed, (whole, streamed)
    assert marks == (None, None), marks


def stored(client):
    (whole, streamed), marks = asks(client, "how deep is the lagoon?")
    assert whole and whole == streamed, (whole, streamed)
    assert all(mark.startswith("fallback; reason=") for mark in marks), marks


def unknown(client):
    try:
        asks(client, "how high is the palm?")
    except openai.APIStatusError as error:
        assert error.status_code == 503, error
        assert error.response.headers["retry-after"], error.response.headers
        assert error.code == "no_endpoint", error
        return
    raise AssertionError("there is nothing that could answer")


if __name__ == "__main__":
    _, subject, url = sys.argv
    {"live": live, "stored": stored, "unknown": unknown}[subject](
        OpenAI(base_url=url, api_key="none", max_retries=0)
    )
