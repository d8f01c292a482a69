# bash completion for run-with. Made by: run-with --generate bash

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
            -s|--signal|-k|--kill-after|--tree-by|--server|--ready|--ready-timeout|--uri|--run|--expect-parent|--parent-fd|--pidfile|--status-fd|--generate) flag=${words[i]} ;;
            -*) ;;
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
        -s|--signal) _run_with_reply "$lead" "$value" -W 'HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS'; return ;;
        --tree-by) _run_with_reply "$lead" "$value" -W 'pid-namespace user-namespace cgroup'; return ;;
        --expect-parent) _run_with_reply "$lead" "$value" -W '$$'; return ;;
        --pidfile) compopt -o filenames 2>/dev/null; _run_with_reply "$lead" "$value" -f; return ;;
        --generate) _run_with_reply "$lead" "$value" -W 'man bash zsh fish'; return ;;
        ?*) return ;;
    esac
    if [[ $cur == -* ]]; then
        _run_with_reply '' "$cur" -W '-s --signal -k --kill-after --tree --tree-by --server --ready --ready-timeout --uri --run --expect-parent --parent-fd --exec --no-forward --pidfile --status-fd --mechanisms --json --generate -h --help -V --version'
        return
    fi
    local element=${cur##*,}
    lead=${cur%"$element"}
    value=${element#*=}
    case $element in
        async-teardown=*) lead+=async-teardown=; _run_with_reply "$lead" "$value" -W 'on off' ;;
        chroot=*) lead+=chroot=; compopt -o filenames 2>/dev/null; _run_with_reply "$lead" "$value" -d ;;
        exit-with-parent=*) lead+=exit-with-parent=; _run_with_reply "$lead" "$value" -W 'on off' ;;
        user=*) lead+=user=; _run_with_reply "$lead" "$value" -u ;;
        *=*) ;;
        *)
            _run_with_reply "$lead" "$element" -W 'async-teardown= chroot= exit-with-parent= user='
            [[ $options && ! $lead ]] && _run_with_reply '' "$cur" -c
            [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] &&
                compopt -o nospace 2>/dev/null
            ;;
    esac
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
