"""`tessella completion`: scripts that let a shell complete commands, options and their values.

A script holds the names of the commands. For all else the shell asks `tessella completion words ...`, so that the
options offered are those of the model and parts that the line has chosen so far. Where nothing is offered, the shell
completes names of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from typing import Any, Literal, get_args, get_origin

from tessella.foundation.errors import TessellaError

OptionsOf = Callable[[str, Sequence[str]], type]
SCRIPTS = {
    "bash": """_tessella() {
    local IFS=$'\\n' offered="COMMANDS"
    if ((COMP_CWORD > 1)); then
        offered="$(tessella completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)"
    fi
    COMPREPLY=($(compgen -W "$offered" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _tessella tessella
""",
    "zsh": """#compdef tessella
_tessella() {
    local -a offered=(${(f)"COMMANDS"})
    if ((CURRENT > 2)); then
        offered=(${(f)"$(tessella completion words "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    fi
    if (($#offered)); then compadd -a offered; else _files; fi
}
compdef _tessella tessella
""",
    "fish": """function __tessella_offered
    set -l words (commandline -opc) (commandline -ct)
    tessella completion words $words[2..-1] 2>/dev/null
end
complete -c tessella -n __fish_use_subcommand -f -a "COMMANDS"
complete -c tessella -n "not __fish_use_subcommand" -a "(__tessella_offered)"
""",
}


DESCRIPTION = """Print the script that lets a shell complete commands, options and their values.

For bash add the line eval "$(tessella completion bash)" to ~/.bashrc. For zsh add the same line with zsh to ~/.zshrc,
after compinit. For fish write the script to ~/.config/fish/completions/tessella.fish.

Attributes:
    shell: bash, zsh or fish.
"""


def completion_options() -> type:
    """The options of the command, made when they are asked for: a script that a shell waits for does without tyro."""
    from tyro.conf import Positional

    made = make_dataclass("Completion", [("shell", Positional[Literal["bash", "zsh", "fish"]])], frozen=True)
    made.__doc__ = DESCRIPTION
    return made


def answer(words: Sequence[str], commands: Sequence[str], options_of: OptionsOf) -> str | None:
    """Answer `tessella completion` with such words: a script, or what a script asks for; None for other words.

    Args:
        commands: the names of all commands.
        options_of: gives the options of a command with such words.
    """
    if words and words[0] == "words":
        return "\n".join(offered(words[1:], commands, options_of))
    if len(words) == 1 and words[0] in SCRIPTS:
        return SCRIPTS[words[0]].replace("COMMANDS", "\n".join(commands)).rstrip()
    return None


def offered(words: Sequence[str], commands: Sequence[str], options_of: OptionsOf) -> list[str]:
    """List what may stand in place of the last of the words that follow `tessella`; empty where a file may."""
    *before, last = words or [""]
    if not before:
        return list(commands)
    from tessella.commands.options import option_types
    from tessella.foundation.registry import names

    name, *before = before
    if name == "train" and not before and not last.startswith("-"):
        return list(names("model"))
    if name == "fit-prior" and before and before[-1] == "--kind":
        return [*names("code-prior"), *names("prior")]
    try:
        options = options_of(name, before)
    except TessellaError:
        return []
    known = {flag: hint for flags, hint in option_types(options) for flag in flags}
    if before and (choices := _choices(known.get(before[-1]))):
        return list(map(str, choices))
    return [*known, "--help"] if last.startswith("-") else []


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for part in get_args(hint) for choice in _choices(part))
