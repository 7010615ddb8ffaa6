"""What openai-python gets from a route with micro-batching, one function per subject.

    openai_batches.py SUBJECT BASE_URL

Ends with an exception, and so with exit code 1, when an answer is not what its request would get alone.
"""

import asyncio
import sys

from openai import AsyncOpenAI, OpenAI

MODEL = "sim-model"
COUNT = 32
ROUNDS = 4
CLIENT = {"api_key": "none", "max_retries": 0, "timeout": 15}


def texts(round):
    return [f"round {round}: how deep is lagoon {index}?" for index in range(COUNT)]


def embeds_one_by_one(base_url):
    with OpenAI(base_url=base_url, **CLIENT) as client:
        for text in texts(0):
            one = client.embeddings.create(model=MODEL, input=text)
            again = client.embeddings.create(model=MODEL, input=[text, "another"])
            assert [item.index for item in again.data] == [0, 1], again
            assert one.data[0].embedding == again.data[0].embedding
            assert one.usage.prompt_tokens == len(text) // 4, one.usage


async def at_once(base_url, create):
    """What `create` gives for each text, all of a round at once, several rounds."""
    found = {}
    async with AsyncOpenAI(base_url=base_url, **CLIENT) as client:
        for round in range(ROUNDS):
            answers = await asyncio.gather(*(create(client, text) for text in texts(round)))
            found.update(zip(texts(round), answers))
    return found


def embeds_at_once(base_url):
    def create(client, text):
        return client.embeddings.create(model=MODEL, input=text)

    found = asyncio.run(at_once(base_url, create))
    assert len({answer.model_dump_json() for answer in found.values()}) == ROUNDS * COUNT
    with OpenAI(base_url=base_url, **CLIENT) as client:
        for text, answer in found.items():
            alone = client.embeddings.create(model=MODEL, input=text)
            assert len(answer.data) == 1 and answer.data[0].index == 0, answer
            assert answer.data[0].embedding == alone.data[0].embedding, text


def completes_at_once(base_url):
    def create(client, text):
        return client.completions.create(model=MODEL, prompt=text, max_tokens=7)

    found = asyncio.run(at_once(base_url, create))
    with OpenAI(base_url=base_url, **CLIENT) as client:
        for text, answer in found.items():
            alone = client.completions.create(model=MODEL, prompt=text, max_tokens=7)
            assert len(answer.choices) == 1 and answer.choices[0].index == 0, answer
            assert answer.choices[0].text == alone.choices[0].text, text
            assert answer.usage.completion_tokens == 7, answer.usage


SUBJECTS = {
    function.__name__: function
    for function in (embeds_one_by_one, embeds_at_once, completes_at_once)
}

if __name__ == "__main__":
    subject, base_url = sys.argv[1:]
    SUBJECTS[subject](base_url)
    print(f"{subject}: done")
