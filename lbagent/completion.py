"""Completion for bash and zsh, made from the command line."""

from __future__ import annotations

from collections.abc import Iterator

from lbagent.commandline import Argument, Command, Option

_FILE, _FOLDER = "FILE", "DIR"
"""Metavars that stand for what a shell can complete by itself."""

_NONE = "''"

_BASH = """\
# bash completion for {name}

_{name}_files() {{
    compopt -o filenames 2> /dev/null
    mapfile -t COMPREPLY < <(compgen "$1" -- "$2")
}}

_{name}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} verb= words= at
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${{COMP_WORDS[at]}} in
            {valued})
                [[ ${{COMP_WORDS[at + 1]}} == = ]] && ((at++))
                ((at++))
                ;;
            -*) ;;
            *)
                verb=${{COMP_WORDS[at]}}
                break
                ;;
        esac
    done
    # bash takes the = of --option=value for a word of its own.
    [[ $before == = ]] && before=${{COMP_WORDS[COMP_CWORD - 2]}}
    [[ $current == = ]] && current=
    case "$verb $before" in
{values}
    esac
    case $verb in
{verbs}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}

complete -F _{name} {name}
"""

_ZSH = """\
#compdef {name}

_{name}() {{
    local curcontext=$curcontext context state state_descr line
    typeset -A opt_args
    local -a verbs=(
{verbs}
    )
    _arguments -C \\
{options}
        '1:VERB:->verb' \\
        '*::argument:->argument' && return
    case $state in
        verb) _describe -t verbs VERB verbs ;;
        argument)
            case $words[1] in
{cases}
            esac
            ;;
    esac
}}

_{name} "$@"
"""


def bash(command: Command) -> str:
    """What bash sources."""
    whole = [("", command), *((verb.name, verb) for verb in command.verbs)]
    values = (line for verb, one in whole for option in one.options for line in _bash_values(command, verb, option))
    verbs = (line for verb, one in whole for line in _bash_verb(command, verb, one))
    valued = (name for option in command.options if option.metavar for name in option.names)
    return _BASH.format(name=command.name, valued=" | ".join(valued), values="\n".join(values), verbs="\n".join(verbs))


def _bash_values(command: Command, verb: str, option: Option) -> Iterator[str]:
    if option.metavar:
        patterns = " | ".join(f'"{verb} {name}"' for name in option.names)
        yield f"        {patterns})"
        if option.choices:
            yield f'            mapfile -t COMPREPLY < <(compgen -W "{" ".join(option.choices)}" -- "$current")'
        elif flag := _flag(option):
            yield f'            _{command.name}_files {flag} "$current"'
        yield "            return"
        yield "            ;;"


def _bash_verb(command: Command, verb: str, one: Command) -> Iterator[str]:
    offered = [name for option in one.options for name in option.names]
    offered += [below.name for below in one.verbs] + [choice for given in one.arguments for choice in given.choices]
    yield f"        {verb or _NONE})"
    yield f'            words="{" ".join(offered)}"'
    for flag in filter(None, map(_flag, one.arguments[:1])):
        yield f'            [[ $current == -* ]] || {{ _{command.name}_files {flag} "$current" && return; }}'
    yield "            ;;"


def _flag(one: Option | Argument) -> str:
    """How compgen is told what to complete; nothing where it cannot know."""
    return {_FILE: "-f", _FOLDER: "-d"}.get(one.metavar, "")


def zsh(command: Command) -> str:
    """What zsh loads by itself from its `fpath`, as `_lbagent`."""
    verbs = (f"        {_quoted(f'{verb.name}:{verb.words}')}" for verb in command.verbs)
    options = (f"        {_zsh_option(option)} \\" for option in command.options)
    cases = (line for verb in command.verbs for line in _zsh_verb(verb))
    return _ZSH.format(name=command.name, verbs="\n".join(verbs), options="\n".join(options), cases="\n".join(cases))


def _zsh_verb(verb: Command) -> Iterator[str]:
    specs = [_zsh_option(option) for option in verb.options]
    specs += [
        _quoted(f"{'::' if given.optional else ':'}{_plain(given.metavar)}:{_action(given)}")
        for given in verb.arguments
    ]
    yield f"                {verb.name})"
    yield " \\\n".join(["                    _arguments", *(f"                        {spec}" for spec in specs)])
    yield "                    ;;"


def _zsh_option(option: Option) -> str:
    words = f"[{_plain(option.words)}]"
    if option.metavar:
        words += f":{_plain(option.metavar)}:{_action(option)}"
    specs = [f"{name}{_joint(name) if option.metavar else ''}" for name in option.names]
    if len(specs) == 1:
        return _quoted(f"{specs[0]}{words}")
    # Of several names only one is offered.
    others = _quoted(f"({' '.join(option.names)})")
    return f"{others}{{{','.join(specs)}}}{_quoted(words)}"


def _joint(name: str) -> str:
    return "=" if name.startswith("--") else "+"


def _action(one: Option | Argument) -> str:
    if one.choices:
        return f"({' '.join(one.choices)})"
    # An empty list: zsh would insert no option beside the message that a single blank makes.
    return {_FILE: "_files", _FOLDER: "_files -/"}.get(one.metavar, "( )")


def _plain(text: str) -> str:
    for special in "\\:[]":
        text = text.replace(special, f"\\{special}")
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
