"""Blocks of code, inline code and command lines of a page in Markdown."""

import re
import shlex

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4,}.*\n?)+", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SHELLS = ("sh", "bash", "text", "")


def prose(text):
    """A page without its blocks of code."""
    return FENCE.sub("", text)


def blocks(text, *languages):
    return [body for _, language, body in FENCE.findall(text) if language in languages]


def inline(text):
    return INLINE.findall(prose(text))


def calls(lines):
    """Each call of `latentddpm` in the lines of a block, as words."""
    for line in lines.replace("\\\n", " ").splitlines():
        yield from calls_of_line(line.strip().removeprefix("$ "))


def calls_of_line(line):
    if not re.search(r"(?<![\w/-])(\S*/)?latentddpm [a-z]", line):
        return
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return  # prose with an apostrophe
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        one, words = words[:end], words[end + 1 :]
        one = one[2:] if one[:2] == ["python", "-m"] else one
        while one and re.fullmatch(r"[A-Z_]+=\S*|nice|srun", one[0]):
            one = one[1:]
        if one and one[0].split("/")[-1] == "latentddpm":
            yield one[1:]
