"""Three chats in a row through a route that allows two a second, one at a time: openai-python waits as it is told.

    openai_rates.py BASE_URL
"""

import sys
import time

from openai import OpenAI

MESSAGES = [{"role": "user", "content": "how deep is the lagoon?"}]

if __name__ == "__main__":
    with OpenAI(base_url=sys.argv[1], api_key="none", max_retries=3, timeout=15) as client:
        start = time.monotonic()
        for _ in range(3):
            answer = client.chat.completions.create(
                model="sim-model", messages=MESSAGES, max_tokens=2
            )
            assert answer.usage.completion_tokens == 2, answer
        took = time.monotonic() - start
    assert took >= 0.9, f"the third was let in after {took} s"
    print("done")
