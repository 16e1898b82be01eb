#!/usr/bin/env python3
"""Writes the seed corpora of the fuzz targets to fuzz/seeds/TARGET/, from the fixtures of the crates."""

import gzip
import io
import json
import pathlib
import struct
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz/seeds"
FAMILIES = ROOT / "crates/model/tests/fixtures/families"
FORMATS = ROOT / "crates/formats/tests/fixtures"


def write(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(data, str):
        data = data.encode()
    (folder / name).write_bytes(data)


def as_json(value):
    return json.dumps(value, ensure_ascii=False)


def safetensors(tensors, metadata=None):
    """A file of F32 tensors: name -> shape."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, shape in tensors.items():
        count = 1
        for dim in shape:
            count *= dim
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * count]}
        data += struct.pack("<f", 0.5) * count
    text = as_json(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def gguf(metadata, tensors):
    """A GGUF file of version 3; tensors: name -> (F32 dims)."""
    def string(text):
        text = text.encode()
        return struct.pack("<Q", len(text)) + text

    def scalar(value):
        if isinstance(value, bool):
            return 7, struct.pack("<B", value)
        if isinstance(value, int):
            return 4, struct.pack("<I", value)
        if isinstance(value, float):
            return 6, struct.pack("<f", value)
        return 8, string(value)

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += string(key)
        if isinstance(value, list):
            kind = 5 if isinstance(value[0], int) else scalar(value[0])[0]
            out += struct.pack("<IIQ", 9, kind, len(value))
            out += b"".join(struct.pack("<i", item) if kind == 5 else scalar(item)[1] for item in value)
        else:
            kind, data = scalar(value)
            out += struct.pack("<I", kind) + data
    offset, sizes = 0, []
    for name, dims in tensors.items():
        size = 4
        for dim in dims:
            size *= dim
        out += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        out += struct.pack("<IQ", 0, offset)
        sizes.append(size)
        offset += -(-size // 32) * 32
    out += b"\0" * (-len(out) % 32)
    for size in sizes:
        out += b"\0" * (-(-size // 32) * 32)
    return out


def tokenizers():
    for family in ["llama3", "mistral"]:
        tokenizer = json.loads((FAMILIES / family / "tokenizer.json").read_text())
        write("tokenizer_json", family, as_json(tokenizer))
    # Small ones, in which a change is likely to matter.
    vocab = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġab": 5, "1": 6}
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b", ["Ġ", "ab"]]}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False}
    normalizers = [
        None,
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Replace", "pattern": {"Regex": "[0-9]+"}, "content": "7"},
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Lowercase"}, {"type": "StripAccents"},
                                              {"type": "Strip", "strip_left": True, "strip_right": True}]},
    ]
    pre_tokenizers = [
        byte_level,
        {"type": "Sequence", "pretokenizers": [split, byte_level]},
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"},
                                                byte_level]},
        {"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 3}, {"type": "WhitespaceSplit"}, byte_level]},
        {"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
                                                {"type": "UnicodeScripts"}, {"type": "CharDelimiterSplit", "delimiter": "-"}, byte_level]},
    ]
    added = [{"id": 7, "content": "<s>", "special": True, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False},
             {"id": 8, "content": "</s>", "special": True}, {"id": 9, "content": "<u>", "special": False}]
    for i, normalizer in enumerate(normalizers):
        for j, pre_tokenizer in enumerate(pre_tokenizers):
            write("tokenizer_json", f"small-{i}-{j}", as_json({"added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
                                                             "model": model}))


def models():
    for family in FAMILIES.iterdir():
        if (family / "config.json").exists():
            write("config_json", family.name, (family / "config.json").read_bytes())
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"}}
    tensors = {"model.embed_tokens.weight": [4, 2], "model.layers.0.self_attn.q_proj.weight": [2, 2], "model.norm.weight": [2]}
    write("shards", "one", as_json(index).encode() + b"\n" + safetensors({"model.embed_tokens.weight": [4, 2]}))
    index["weight_map"] = {name: "model-00001-of-00001.safetensors" for name in tensors}
    write("shards", "three", as_json(index).encode() + b"\n" + safetensors(tensors, {"format": "pt"}))
    config = {
        "general.architecture": "llama", "llama.embedding_length": 32, "llama.block_count": 1, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1, "llama.attention.key_length": 16, "llama.feed_forward_length": 32, "llama.context_length": 16,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0, "llama.vocab_size": 12,
    }
    tokens = ["<|im_end|>", "a", "b", "ab", "Ġ", "Ġab", "1", "Ċ", "Ã", "©", "é", "<u>"]
    tokenizer = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b", "Ġ ab"], "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.role + m['content'] }}{% endfor %}",
    }
    tensors = {"token_embd.weight": [32, 12], "rope_freqs.weight": [8]}
    write("gguf", "bytes", gguf({**config, **tokenizer}, tensors))
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "b", "ab", "▁ab"]
    pieces = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.scores": [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 5, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }
    write("gguf", "pieces", gguf({"general.architecture": "llama", **pieces}, {}))
    templates = json.loads((FORMATS / "templates.json").read_text())

    def sources(value):
        if isinstance(value, dict):
            for key, item in value.items():
                if key in ("source", "template") and isinstance(item, str):
                    yield item
                yield from sources(item)
        elif isinstance(value, list):
            for item in value:
                yield from sources(item)

    for i, source in enumerate(sources(templates)):
        write("chat_template", f"{i:03}", source)
    write("chat_template", "llama3", (FAMILIES / "llama3/chat_template.jinja").read_bytes())


def data_files():
    row = {"prompt": "p", "completion": "c, \"d\""}
    lines = (as_json(row) + "\n").encode() * 2
    table = b'prompt,completion\r\np,"c, ""d"""\r\n'
    # One frame with one raw block.
    zstd = b"\x28\xb5\x2f\xfd\x20" + bytes([len(lines)]) + struct.pack("<I", len(lines) << 3 | 1)[:3] + lines
    for name, ending, content in [
        ("lines", 0, lines), ("list", 0, as_json([row, row]).encode()), ("csv", 1, table), ("tsv", 2, table.replace(b",", b"\t")),
        ("lines-gz", 0, gzip.compress(lines, mtime=0)), ("csv-gz", 1, gzip.compress(table, mtime=0)), ("lines-zst", 0, zstd),
    ]:
        write("data_file", name, bytes([ending]) + content)


def adapters():
    pair = {}
    for module in ["q_proj", "v_proj"]:
        name = f"base_model.model.model.layers.0.self_attn.{module}"
        pair[f"{name}.lora_A.weight"] = [2, 4]
        pair[f"{name}.lora_B.weight"] = [4, 2]
    weights = safetensors(pair, {"format": "pt", "lory.base_sha256": "00"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    configs = {
        "list": config,
        "expression": {**config, "target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj", "use_rslora": True},
        "all": {**config, "target_modules": "all-linear", "lora_alpha": 4.5, "lora_dropout": 0.1},
        "patterns": {**config, "rank_pattern": {"q_proj": 4, "^model.layers.[0-3].self_attn.v_proj": 8}, "alpha_pattern": {"v_proj": 2}},
        "layers": {**config, "layers_to_transform": [0, 1], "layers_pattern": "layers"},
    }
    write("safetensors", "pair", weights)
    for name, value in configs.items():
        write("peft_config", name, as_json(value))
    for name, folder in [("flat", ""), ("folder", "adapter/")]:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(folder + "adapter_config.json", as_json(config))
            file.writestr(folder + "adapter_model.safetensors", weights)
            file.writestr(folder + "README.md", "An adapter.")
        write("zip_upload", name, archive.getvalue())


def registry():
    names = ["customer", "customer@3", "customer*0.7+partner*0.3", "a@1*0.5 + b*1e-1", "x_1-y"]
    for i, name in enumerate(names):
        write("persona_name", str(i), name)
    settings = {}
    change = [
        {"op": "publish", "name": "a", "version": 1, "adapter": None, "settings": settings, "current": True},
        {"op": "publish", "name": "a", "version": 2, "adapter": None, "settings": settings, "current": False},
        {"op": "canary", "name": "a", "version": 2, "percent": 10},
        {"op": "alias", "alias": "b", "target": {"name": "a", "version": 1}},
        {"op": "rollback", "name": "a", "version": 1},
        {"op": "remove_alias", "alias": "b"},
        {"op": "remove", "name": "a", "version": None},
    ]
    lines = [as_json({"format": 1, "sequence": i + 1, "id": "x", "time": 1, "change": one}) for i, one in enumerate(change)]
    write("registry_entry", "all", "\n".join(lines))
    for i, line in enumerate(lines):
        write("registry_entry", str(i), line)


def requests():
    schemas = [
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"type": "integer", "minimum": 0, "multipleOf": 5}},
         "required": ["a"], "additionalProperties": False},
        {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1, "maxItems": 3, "$defs": {"x": {"enum": [1, "two", None]}}},
        {"anyOf": [{"type": "string", "pattern": "^[a-z]{1,3}$"}, {"type": "string", "format": "date-time"}, {"const": {"k": [1.5]}}]},
        {"allOf": [{"type": "object", "properties": {"a": {}}}, {"patternProperties": {"^x": {"type": "number"}}}]},
        {"oneOf": [{"type": "number", "minimum": -1.5, "exclusiveMaximum": 2}, {"type": "boolean"}], "title": "x"},
        {"type": "string", "minLength": 2, "maxLength": 4}, {"multipleOf": 0.01, "type": "number"},
    ]
    for i, schema in enumerate(schemas):
        write("json_schema", str(i), as_json(schema))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    chat = {"model": "tiny", "messages": messages, "max_completion_tokens": 2, "temperature": 0.5, "seed": 1, "stop": ["x"], "n": 1,
            "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": -1}}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": schemas[0]}}
    bodies = [
        (0, chat), (0, {**chat, "tools": [tool], "tool_choice": "auto"}),
        (0, {**chat, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schemas[2]}}}),
        (1, {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 1}),
        (2, {"prompt": "Hi", "user_type": "tiny", "max_new_tokens": 2, "top_p": 0.9, "top_k": 5}),
        (3, {"lora_name": "x", "lora_path": "/x"}), (4, {"version": 1, "percent": 5}),
        (5, {"model": "tiny", "training_file": "file-1", "method": {"type": "supervised"}}),
        (6, {"personas": ["tiny"]}), (7, {"winner": "tiny", "loser": "tiny", "prompt": "x"}),
    ]
    for i, (route, body) in enumerate(bodies):
        write("request_body", str(i), bytes([route]) + as_json(body).encode())


tokenizers()
models()
data_files()
adapters()
registry()
requests()
