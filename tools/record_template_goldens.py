#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records what Jinja2 makes of chat templates, to compare ours with.

Needs jinja2 and nothing else. The environment is the one of transformers'
chat_template_utils.py: a sandbox with trim_blocks, lstrip_blocks, loop
controls, a `generation` tag, and its own tojson, raise_exception,
strftime_now, namespace and dict.

  record_template_goldens.py --templates DIR --out cases.jsonl
      every template under DIR with every conversation below
  record_template_goldens.py --snippets snippets.json --out cases.jsonl
      a list of small templates
  record_template_goldens.py --testdata testdata/templates
      the goldens of the repository: snippet_goldens.json from snippets.json,
      conversations.json, and goldens.json with a hash (FNV-1a) per rendering

A line of the output is {name, template, messages, tools, documents,
add_generation_prompt, variables, now} with either "text" or "error".
"""

import argparse
import datetime
import functools
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = "2025-01-15T12:34:56"


class Generation(jinja2.ext.Extension):
    """The `generation` tag: its body in a block of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_render")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Refuses names that begin with an underscore."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError("underscore")


class Dict:
    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: datetime.datetime.fromisoformat(
        NOW
    ).strftime(format)
    env.globals["dict"] = Dict()
    env.globals["namespace"] = Namespace
    return env


@functools.lru_cache(maxsize=4)
def compiled(env, template):
    return env.from_string(template)


def record(env, case):
    arguments = dict(case["variables"])
    arguments.update(
        messages=json.loads(json.dumps(case["messages"])),
        tools=case["tools"],
        documents=case["documents"],
        add_generation_prompt=case["add_generation_prompt"],
    )
    try:
        text = compiled(env, case["template"]).render(**arguments)
        text.encode("utf-8")
        return {"text": text}
    except Exception as error:  # whatever the template provokes
        return {"error": f"{type(error).__name__}: {error}"}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": 'Get the "current" weather in a given location – °C',
        "parameters": {
            "type": "object",
            "properties": {
                "location": {
                    "type": "string",
                    "description": "The city and state, e.g. San Francisco, CA",
                },
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "array", "items": {"type": "integer"}},
                "detail": {
                    "type": "object",
                    "properties": {
                        "deep": {"type": ["string", "null"], "default": None}
                    },
                },
                "exact": {"type": "boolean", "default": False},
            },
            "required": ["location"],
        },
        "return": {"type": "string", "description": "The weather"},
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the web <fast> & well",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What\nto find"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 1e3},
                "ratio": {"type": "number", "default": 0.5},
            },
            "required": ["query", "limit"],
        },
    },
}
NO_PARAMETERS = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time",
        "parameters": {"type": "object", "properties": {}},
    },
}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, call_id="call00001"):
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


SYSTEM = message("system", "You are a helpful assistant.\nBe brief. ")
HELLO = message("user", "Hello, how are you?")
FINE = message("assistant", "I am fine. \n")
IMAGE = {"type": "image", "image": "x.png"}


def text_part(text):
    return {"type": "text", "text": text}


WEATHER_CALL = call(
    "get_current_weather", {"location": "Zürich, CH", "unit": "celsius"}
)
RESULT = message(
    "tool",
    '{"temperature": 21.5}',
    name="get_current_weather",
    tool_call_id="call00001",
)

CONVERSATIONS = {
    "user": [HELLO],
    "system": [SYSTEM, HELLO],
    "developer": [message("developer", "Terse."), HELLO],
    "turns": [HELLO, FINE, message("user", "And now?")],
    "system_turns": [
        SYSTEM,
        HELLO,
        FINE,
        message("user", "  padded  "),
        message("assistant", "yes"),
        message("user", "x"),
    ],
    "ends_with_assistant": [HELLO, message("assistant", "The answer is")],
    "unicode": [
        message("system", "Täglich grüßt 你好 ﷽ 🤷🏽‍♀️"),
        message("user", "naïve\u00a0café e\u0301 𝒳 \u2028 tab\t'q' \"d\" \\ </s>"),
        message("assistant", "Ω≈ç√ <think>\nhm\n</think>\n\n结果"),
        message("user", "مرحبا <|im_end|> {{ messages }} {% x %}"),
    ],
    "empty_content": [message("user", ""), message("assistant", ""), HELLO],
    "none_content": [
        HELLO,
        message("assistant", None, tool_calls=[WEATHER_CALL]),
        RESULT,
    ],
    "parts": [
        SYSTEM,
        message("user", [text_part("What is "), text_part("this?")]),
    ],
    "image": [message("user", [IMAGE, text_part("Describe it.")])],
    "media": [
        message("system", [text_part("Sys.")]),
        message(
            "user",
            [
                text_part("a"),
                IMAGE,
                {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
                {"type": "audio", "audio": "b.wav"},
                {"type": "video", "video": "c.mp4"},
                text_part("b"),
            ],
        ),
        message("assistant", [text_part("It is "), text_part("a cat")]),
        message("user", [text_part("Sure?")]),
    ],
    "thinking_field": [
        HELLO,
        message("assistant", "Hi.", reasoning_content="First, greet."),
        message("user", "Go on"),
        message("assistant", "Done.", thinking="Now finish."),
        message("user", "More"),
    ],
    "thinking_inline": [
        SYSTEM,
        HELLO,
        message("assistant", "<think>\nplan\n</think>\n\nHi."),
        message("user", "Go on"),
    ],
    "tool_call": [
        SYSTEM,
        message("user", "Weather in Zürich?"),
        message("assistant", "", tool_calls=[WEATHER_CALL]),
        RESULT,
        message("assistant", "It is 21.5 °C."),
        message("user", "Thanks"),
    ],
    "tool_call_text": [
        message("user", "Weather?"),
        message(
            "assistant",
            "I will look.",
            reasoning_content="Need a tool.",
            tool_calls=[
                call("get_current_weather", '{"location": "Paris", "days": [1, 2]}')
            ],
        ),
        RESULT,
    ],
    "tool_calls_parallel": [
        SYSTEM,
        message("user", "Weather and news?"),
        message(
            "assistant",
            "",
            tool_calls=[
                WEATHER_CALL,
                call(
                    "search",
                    {
                        "query": 'a "b" <c>',
                        "limit": 3,
                        "ratio": 1.0,
                        "deep": {"x": [None, True, 1e-7]},
                    },
                    "call00002",
                ),
            ],
        ),
        RESULT,
        message("tool", "news: none", name="search", tool_call_id="call00002"),
        message("assistant", "All done."),
        message("user", "ok"),
    ],
    "tool_result_list": [
        message("user", "Run"),
        message("assistant", None, tool_calls=[call("now", {})]),
        message(
            "tool",
            [text_part("12:00")],
            name="now",
            tool_call_id="call00001",
        ),
    ],
    "tool_result_object": [
        message("user", "Run"),
        message("assistant", "", tool_calls=[call("search", {"query": "q"})]),
        message("tool", {"hits": [1, 2.5]}, name="search", tool_call_id="call00001"),
        message("assistant", "Two."),
        message("user", "Again"),
        message("assistant", "", tool_calls=[call("search", {"query": "r"})]),
        message("tool", "[]", name="search", tool_call_id="call00001"),
    ],
    "bare_function_call": [
        message("user", "Run"),
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"name": "search", "arguments": {"query": "q"}}],
        },
        message("tool", "x"),
    ],
    "two_users": [HELLO, message("user", "Again")],
    "starts_with_assistant": [FINE, HELLO],
    "system_late": [HELLO, FINE, SYSTEM, message("user", "x")],
    "system_only": [SYSTEM],
    "empty": [],
    "odd_role": [message("critic", "Hm."), HELLO],
    "long": [
        message("user" if i % 2 == 0 else "assistant", f"line {i}\n" * (i % 5))
        for i in range(24)
    ]
    + [message("user", "end")],
    "ipython": [
        SYSTEM,
        HELLO,
        message("assistant", "<|python_tag|>1+1"),
        message("ipython", {"output": 2}),
    ],
    "missing_content": [HELLO, {"role": "assistant"}, message("user", "x")],
}

TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}

VARIANTS = {
    "plain": {},
    "no_prompt": {"add_generation_prompt": False},
    "tools": {"tools": [WEATHER, SEARCH, NO_PARAMETERS]},
    "one_tool": {"tools": [SEARCH], "add_generation_prompt": False},
    "think": {"variables": {**TOKENS, "enable_thinking": True, "thinking": True}},
    "no_think": {
        "variables": {
            **TOKENS,
            "enable_thinking": False,
            "thinking": False,
            "reasoning_effort": "high",
        },
    },
    "no_tokens": {"variables": {}},
    "documents": {
        "documents": [{"title": "A", "text": "Body a"}, {"title": "B", "text": "b"}],
        "variables": {**TOKENS, "date_string": "26 Jul 2024", "builtin_tools": ["x"]},
    },
}


def case(name, template, conversation, variant):
    out = {
        "name": name,
        "template": template,
        "messages": conversation,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "variables": TOKENS,
        "now": NOW,
    }
    out.update(variant)
    return out


def read_template(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        text = json.loads(text)["chat_template"]
        if isinstance(text, list):
            text = text[0]["template"]
    return text


def template_cases(folder):
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.suffix not in {".jinja", ".jinja2", ".json"}:
            continue
        template = read_template(path)
        for conversation in CONVERSATIONS:
            for variant in VARIANTS:
                name = f"{path.relative_to(folder)}/{conversation}/{variant}"
                yield case(
                    name, template, CONVERSATIONS[conversation], VARIANTS[variant]
                )


def snippet_cases(path):
    for i, snippet in enumerate(json.loads(pathlib.Path(path).read_text("utf-8"))):
        variables = {
            "items": [1, 2, 3],
            "name": "World",
            "people": [
                {"name": "Ann", "age": 31, "city": {"zip": "b"}},
                {"name": "bob", "age": 4, "city": {"zip": "A"}},
                {"name": "Čyr", "age": 31, "city": {"zip": "a"}},
            ],
            "data": {"b": 1, "a": [1.5, None, True], "ü": {"x": "<é>"}},
        }
        yield case(str(i), snippet, [HELLO, FINE], {"variables": variables})


def fnv1a(text):
    out = 0xCBF29CE484222325
    for byte in text.encode("utf-8"):
        out = ((out ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{out:016x}"


def dump(path, value):
    text = json.dumps(value, ensure_ascii=False, indent=0)
    path.write_text(text + "\n", encoding="utf-8")


def record_testdata(env, folder):
    folder = pathlib.Path(folder)
    snippets = []
    for one in snippet_cases(folder / "snippets.json"):
        result = record(env, one)
        if " at 0x" in result.get("text", ""):
            continue  # an address
        snippets.append([one["template"], result.get("text")])
        given = {k: one[k] for k in ("messages", "variables")}
    dump(folder / "snippet_goldens.json", {**given, "snippets": snippets})
    variants = {name: case("", "", [], VARIANTS[name]) for name in VARIANTS}
    dump(
        folder / "conversations.json",
        {"conversations": CONVERSATIONS, "variants": variants},
    )
    goldens = {}
    for one in template_cases(folder / "sources"):
        result = record(env, one)
        goldens[one["name"]] = fnv1a(result["text"]) if "text" in result else None
    dump(folder / "goldens.json", goldens)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates")
    parser.add_argument("--snippets")
    parser.add_argument("--only", nargs="*", help="names of conversations")
    parser.add_argument("--testdata")
    parser.add_argument("--out")
    args = parser.parse_args()
    env = environment()
    if args.testdata:
        record_testdata(env, args.testdata)
        return
    cases = []
    if args.templates:
        cases += template_cases(args.templates)
    if args.snippets:
        cases += snippet_cases(args.snippets)
    count = 0
    with open(args.out, "w", encoding="utf-8") as out:
        for one in cases:
            if args.only and one["name"].split("/")[-2] not in args.only:
                continue
            out.write(json.dumps({**one, **record(env, one)}, ensure_ascii=False))
            out.write("\n")
            count += 1
    print(f"{count} cases", file=sys.stderr)


if __name__ == "__main__":
    main()
