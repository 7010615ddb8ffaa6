"""Writes a tiny model with random weights, for a real engine to run at no cost.

    make_model.py FILE

A llama of two layers that knows single bytes and speaks only printable ASCII. It never ends by itself, so that an
answer is exactly as long as `max_tokens` says, and the same seed always writes the same file.
"""

import sys

import gguf
import numpy

LAYERS, WIDTH, HEADS, INNER = 2, 64, 4, 128
CONTEXT = 65536
SPECIAL = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "

# Added to the score of a token that must not be drawn: far more than random weights can outweigh.
NEVER = -60.0


def vocabulary():
    tokens = SPECIAL + [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    return [text for text, _ in tokens], [kind for _, kind in tokens]


def weights(random, tokens):
    """Channel 0 is 1 for every token and no layer writes to it, so its output weights are a bias per token.

    Without the bias a random model draws bytes that are no UTF-8, and ends where chance has it.
    """

    def matrix(rows, columns, scale=0.1):
        return random.normal(0, scale, (rows, columns)).astype(numpy.float32)

    embedding = matrix(tokens, WIDTH, 1.0)
    embedding[:, 0] = 1.0
    yield "token_embd.weight", embedding
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v"):
            yield f"blk.{layer}.{name}.weight", matrix(WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{layer}.{name}.weight", matrix(INNER, WIDTH)
        for name, inputs in (("attn_output", WIDTH), ("ffn_down", INNER)):
            written = matrix(WIDTH, inputs)
            written[0] = 0.0
            yield f"blk.{layer}.{name}.weight", written
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", numpy.ones(WIDTH, numpy.float32)
    yield "output_norm.weight", numpy.ones(WIDTH, numpy.float32)
    output = matrix(tokens, WIDTH, 0.2)
    output[:, 0] = NEVER
    output[len(SPECIAL) + 0x20 : len(SPECIAL) + 0x7F, 0] = 0.0
    yield "output.weight", output


def write(path):
    texts, kinds = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(texts))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * len(texts))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in weights(numpy.random.default_rng(7), len(texts)):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(sys.argv[1])
