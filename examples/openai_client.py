"""Streams a completion from a device's endpoint.

make demo ARGS=--serve                      # in one terminal
.venv/bin/python examples/openai_client.py  # in another
"""

import sys

from openai import OpenAI


def main(base_url: str = "http://127.0.0.1:7601/v1") -> None:
    """Print the tokens as the server commits them, then what speculation did."""
    client = OpenAI(base_url=base_url, api_key="none")
    model = client.models.list().data[0].id
    chunks = client.completions.create(
        model=model,
        prompt="def read_lines(path):\n",
        max_tokens=48,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.text, end="", flush=True)
        if chunk.usage is not None:
            details = chunk.usage.completion_tokens_details
            print(f"\n\n{chunk.usage.completion_tokens} tokens, {details.accepted_prediction_tokens} of them drafted")


if __name__ == "__main__":
    main(*sys.argv[1:])
