"""Keeps chats streaming through the proxy and tells which of them failed, and when.

    load.py BASE_URL MODEL CLIENTS CHATS TOKENS

So many clients chat in closed loops until so many chats have begun. Each chat that ends is a line; the last line is
a JSON object. Nothing is tried twice: `complete` chats came to their end, `cut` ones broke off after their first byte,
`lost` ones failed before it. Answers are from half as long to one and a half times as long as TOKENS, so that
at any moment some have just begun and others are about to end.
"""

import asyncio
import json
import sys

from openai import AsyncOpenAI

MESSAGES = [{"role": "user", "content": "how deep is the lagoon?"}]


class Load:
    def __init__(self, client, model, chats, tokens):
        self.create = client.chat.completions.with_streaming_response.create
        self.model, self.tokens = model, tokens
        self.numbers = iter(range(chats))
        self.complete, self.cut, self.lost = 0, [], []

    async def loop(self):
        for number in self.numbers:
            await self.chat(self.tokens // 2 + number * 37 % self.tokens)
            print(f"ended {self.complete + len(self.cut) + len(self.lost)}", flush=True)

    async def chat(self, tokens):
        begun = False
        try:
            async with self.create(model=self.model, messages=MESSAGES, max_tokens=tokens, stream=True) as answer:
                begun = True
                # Unparsed: the package takes longer to make objects of the events than the engines to write them, and
                # nothing would ever wait at an engine.
                text = b"".join([piece async for piece in answer.iter_bytes()])
            assert b'"finish_reason":"length"' in text and text.endswith(b"data: [DONE]\n\n"), text[-600:]
            self.complete += 1
        except Exception as error:
            (self.cut if begun else self.lost).append(repr(error))


async def main(base_url, model, clients, chats, tokens):
    async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        load = Load(client, model, chats, tokens)
        await asyncio.gather(*(load.loop() for _ in range(clients)))
    print(json.dumps({"complete": load.complete, "cut": load.cut, "lost": load.lost}), flush=True)


if __name__ == "__main__":
    url, model, *numbers = sys.argv[1:]
    asyncio.run(main(url, model, *map(int, numbers)))
