"""What the tests ask of openai-python, one function per subject.

    openai_calls.py SUBJECT BASE_URL

Ends with an exception, and so with exit code 1, when an answer is not what a user of the package would expect.
"""

import sys

import openai
from openai import OpenAI

MESSAGES = [{"role": "user", "content": "how deep is the lagoon?"}]
MODEL = "sim-model"


def models(client):
    assert [model.id for model in client.models.list()] == [MODEL]


def chats(client):
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=12)
    assert answer.choices[0].message.content, answer
    assert answer.choices[0].finish_reason == "length", answer
    assert answer.usage.completion_tokens == 12, answer.usage


def streams(client):
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=25, stream=True, stream_options=options
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=25)
    assert text == whole.choices[0].message.content, text
    assert chunks[-1].usage.completion_tokens == 25, chunks[-1]
    assert not chunks[-1].choices


def streams_often(client):
    for _ in range(20):
        streams(client)


def completes(client):
    answer = client.completions.create(model=MODEL, prompt="the tide", max_tokens=3)
    assert answer.choices[0].text and answer.usage.completion_tokens == 3, answer


def embeds(client):
    answer = client.embeddings.create(model=MODEL, input="reef and shoal")
    assert len(answer.data) == 1 and answer.data[0].embedding, answer


def keeps_its_connection(client):
    """No streams: the package hangs up after `[DONE]`, before the end of the body."""
    for _ in range(20):
        chats(client)


def cancels(client):
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=2000, stream=True
    )
    for seen, _ in enumerate(stream):
        if seen == 3:
            break
    stream.close()


def sees_404(client):
    try:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    except openai.NotFoundError as error:
        said(error, 404)
    else:
        raise AssertionError("no error")


def sees_503(client):
    """The backend has no endpoint that could answer."""
    try:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    except openai.InternalServerError as error:
        said(error, 503)
    else:
        raise AssertionError("no error")


def sees_no_route(client):
    """The proxy itself says 404, in the form of the API."""
    try:
        client.get("/no/such/route", cast_to=object)
    except openai.NotFoundError as error:
        said(error, 404)
    else:
        raise AssertionError("no error")


def said(error, status):
    assert isinstance(error, openai.APIStatusError)
    assert error.status_code == status, error.status_code
    # The package takes `error` out of a body that has the form of the API.
    assert isinstance(error.body, dict) and error.body.get("message"), error.body
    assert "type" in error.body and "code" in error.body, error.body


SUBJECTS = {
    function.__name__: function
    for function in (
        models,
        chats,
        streams,
        streams_often,
        completes,
        embeds,
        keeps_its_connection,
        cancels,
        sees_404,
        sees_503,
        sees_no_route,
    )
}

if __name__ == "__main__":
    subject, base_url = sys.argv[1:]
    with OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=15) as client:
        SUBJECTS[subject](client)
    print(f"{subject}: done")
