"""The pages of a command line: what ``--help`` says, made from the commands while building."""

import re
from collections.abc import Iterator
from importlib import import_module
from inspect import cleandoc
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive

AS_WRITTEN = "\b\n"  # click's sign of a paragraph whose lines stay as they are
# Also the name of an option, whose two hyphens would become a dash.
LITERAL = re.compile(r"``(.+?)``|`(.+?)`|(?<![\w-])(--[a-z][\w-]*)")


class Commands(Directive):
    """``commands:: module:name``, a section for the command and for each below it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        module, _, name = self.arguments[0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        found = list(sections(command, _context(command, command.name)))
        for section in found:
            self.state.document.note_implicit_target(section, section)
        return list(found)


def sections(command: click.Command, context: click.Context) -> Iterator[nodes.section]:
    """Yield a section for the command and each below it, none inside another."""
    path = context.command_path
    section = nodes.section("", nodes.title(path, path), names=[path], ids=[nodes.make_id(path)])
    for text in cleandoc(command.help or "").split("\n\n"):
        section += _paragraphs(text)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    section += [nodes.paragraph("", "Usage:"), _code(usage, "text")]
    section += _options(command, context)
    yield section
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from sections(below, _context(below, name, parent=context))


def _context(
    command: click.Command, name: str | None, parent: click.Context | None = None
) -> click.Context:
    settings: dict[str, Any] = command.context_settings
    return click.Context(command, parent=parent, info_name=name, **settings)


def _paragraphs(text: str) -> list[nodes.Node]:
    if not text.startswith(AS_WRITTEN):
        return [nodes.paragraph("", "", *_inline(" ".join(text.split())))]
    title, _, lines = text.removeprefix(AS_WRITTEN).partition("\n")
    return [nodes.paragraph("", "", *_inline(title)), _code(cleandoc("\n" + lines), "bash")]


def _options(command: click.Command, context: click.Context) -> nodes.definition_list:
    found = nodes.definition_list(classes=["options"])
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if record and record[1]:  # an argument has no meaning of its own
            names, meaning = record
            term = nodes.term("", "", nodes.literal(names, names))
            about = nodes.paragraph("", "", *_inline(meaning))
            found += nodes.definition_list_item("", term, nodes.definition("", about))
    return found


def _inline(text: str) -> list[nodes.Node]:
    parts = LITERAL.split(text)  # after each piece of text the three groups, one of them met
    return [nodes.literal(p, p) if i % 4 else nodes.Text(p) for i, p in enumerate(parts) if p]


def _code(text: str, language: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language=language)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
