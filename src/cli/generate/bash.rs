//! Completion for bash, which needs nothing but bash; with bash-completion the command's own
//! completion is used after the command.

use super::{FLAGS, Values, flags_with_values, spellings};
use crate::run_with::KEYS;

/// Finds the words again that bash has split at `=` and `:` (COMP_WORDBREAKS), and the command.
const HEAD: &str = r#"# bash completion for run-with. Made by: run-with --generate bash

_run_with()
{
    # COMP_WORDS is split at = and : as well. What is not separated by blanks is one word;
    # starts[n] is where word n begins in COMP_WORDS.
    local -a words=() starts=()
    local line=${COMP_LINE:0:COMP_POINT} n=-1 i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        if ((n < 0)) || [[ $line == [[:blank:]]* ]]; then
            line=${line#"${line%%[![:blank:]]*}"}
            n=$((n + 1))
            words[n]=
            starts[n]=$i
        fi
        if ((i == COMP_CWORD)); then
            words[n]+=$line
        else
            words[n]+=${COMP_WORDS[i]}
            line=${line#"${COMP_WORDS[i]}"}
        fi
    done
    local cur=${words[n]} flag= options= command=
    for ((i = 1; i < n; i++)); do
        if [[ $flag ]]; then
            flag=
            continue
        fi
        case ${words[i]} in
            --) command=$((i + 1)); break ;;
"#;

const COMMAND: &str = r#"            -*) ;;
            *=*) options=1 ;;
            *) command=$i; break ;;
        esac
    done

    COMPREPLY=()
    if [[ $command ]]; then
        if declare -F _comp_command_offset >/dev/null; then
            _comp_command_offset "${starts[command]}"
        elif declare -F _command_offset >/dev/null; then
            _command_offset "${starts[command]}"
        elif ((command == n)); then
            _run_with_reply '' "$cur" -c
        else
            compopt -o filenames 2>/dev/null
            _run_with_reply '' "$cur" -f
        fi
        return
    fi

    local lead= value=$cur
    if [[ -z $flag && $cur == --*=* ]]; then
        flag=${cur%%=*}
        lead=$flag=
        value=${cur#*=}
    fi
    case $flag in
"#;

const OPERANDS: &str = r"        ?*) return ;;
    esac
    if [[ $cur == -* ]]; then
";

const TAIL: &str = r#"    esac
}

# Adds what `compgen "${@:3}"` offers for the text $2, which follows $1 in the word. Where bash sees
# a word break in the word (COMP_WORDBREAKS), it replaces only what follows the last.
_run_with_reply()
{
    local lead=$1 text=$2 reply at cut= before
    shift 2
    for at in = :; do
        if [[ $COMP_WORDBREAKS == *"$at"* && $cur == *"$at"* ]]; then
            before=${cur%"$at"*}$at
            ((${#before} > ${#cut})) && cut=$before
        fi
    done
    while IFS= read -r reply; do
        reply=$lead$reply
        COMPREPLY+=("${reply#"$cut"}")
    done < <(compgen "$@" -- "$text")
}

complete -F _run_with run-with
"#;

pub(super) fn completions() -> String {
    let mut text = HEAD.to_owned();
    let with_values = flags_with_values().join("|");
    text += &format!("            {with_values}) flag=${{words[i]}} ;;\n");
    text += COMMAND;
    for flag in FLAGS {
        let Some(values) = Values::of_flag(flag) else {
            continue;
        };
        let Some(reply) = reply(&values, "$lead", "$value") else {
            continue;
        };
        text += &format!(
            "        {}) {reply}; return ;;\n",
            spellings(flag).join("|")
        );
    }
    text += OPERANDS;
    let flags: Vec<String> = FLAGS.iter().flat_map(spellings).collect();
    text += &words_reply(&flags.join(" "));
    text += "        return\n    fi\n";
    text += "    local element=${cur##*,}\n    lead=${cur%\"$element\"}\n";
    text += "    value=${element#*=}\n    case $element in\n";
    for key in KEYS {
        if let Some(reply) = reply(&Values::of_key(key), "$lead", "$value") {
            let name = key.name;
            let set = format!("lead+={name}=");
            text += &format!("        {name}=*) {set}; {reply} ;;\n");
        }
    }
    let keys: Vec<String> = KEYS.iter().map(|key| format!("{}=", key.name)).collect();
    text += &format!(
        "        *=*) ;;\n        *)\n            _run_with_reply \"$lead\" \"$element\" -W '{}'\n",
        keys.join(" ")
    );
    text += "            [[ $options && ! $lead ]] && _run_with_reply '' \"$cur\" -c\n";
    text += "            [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] &&\n";
    text += "                compopt -o nospace 2>/dev/null\n            ;;\n";
    text += TAIL;
    text
}

fn words_reply(words: &str) -> String {
    format!("        _run_with_reply '' \"$cur\" -W '{words}'\n")
}

/// The shell's words that offer these values.
fn reply(values: &Values, lead: &str, value: &str) -> Option<String> {
    let actions = match values {
        Values::Words(words) => format!("-W '{}'", words.join(" ")),
        Values::Files => "-f".to_owned(),
        Values::Directories => "-d".to_owned(),
        Values::Users => "-u".to_owned(),
        // A shell's own pid is a launcher's most likely one.
        Values::Processes => "-W '$$'".to_owned(),
        Values::Free => return None,
    };
    let names = match values {
        Values::Files | Values::Directories => "compopt -o filenames 2>/dev/null; ",
        _ => "",
    };
    Some(format!(
        "{names}_run_with_reply \"{lead}\" \"{value}\" {actions}"
    ))
}
