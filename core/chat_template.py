"""Chat templates of model directories: compiled in a sandbox, rendered with the variables that transformers gives them.

A template comes with the model and is not trusted: Jinja's immutable sandbox, no file access, plain data only. What a
template refuses (`raise_exception`) or trips over is the request's fault, because the same template serves others.
"""

import json
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from core.errors import InvalidRequest
from core.openai.tool_calls import ToolFormat, detect_format

# What running an untrusted template can raise; anything else is a defect of ours.
_TEMPLATE_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


class ChatTemplate:
    """`special_tokens`: what the template sees as `bos_token`, `eos_token` and so on."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        self._source = source
        self._special_tokens = special_tokens

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template looks at tools at all. A broken one finds that out when it is rendered."""
        try:
            return "tools" in meta.find_undeclared_variables(_environment().parse(self._source))
        except TemplateError:
            return True

    @cached_property
    def tool_format(self) -> ToolFormat:
        return detect_format(self._source) if self.takes_tools else ToolFormat.NONE

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The text that asks for the assistant's next message. Raises InvalidRequest where the template refuses."""
        try:
            return self._compiled.render(
                self._special_tokens, messages=messages, tools=tools, documents=None, add_generation_prompt=True
            )
        except _TEMPLATE_FAILURES as error:
            reason = str(error) or type(error).__name__
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {reason}", param="messages"
            ) from error

    @cached_property
    def _compiled(self) -> Template:  # late, so that a broken template spoils chat alone
        return _environment().from_string(self._source)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _PlainNamespace
    environment.globals["dict"] = _new_dict  # the class itself would hand its methods to the template
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for training; here it is its content and nothing else."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore: those lead to the interpreter's insides."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no `self`, so that `namespace(self=…)` works
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, got {name!r}")


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a model has never seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
