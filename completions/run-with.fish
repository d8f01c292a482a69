# fish completion for run-with. Made by: run-with --generate fish

# Prints where the command begins among the words before the cursor, if it does.
function __run_with_command
    set -l words (commandline -opc)
    set -l flag
    for i in (seq 2 (count $words))
        if set -q flag[1]
            set -e flag
            continue
        end
        switch $words[$i]
            case --
                math $i + 1
                return 0
            case -s --signal -k --kill-after --tree-by --server --ready --ready-timeout --uri --run --expect-parent --parent-fd --pidfile --status-fd --generate
                set flag $words[$i]
            case '-*' '*=*'
            case '*'
                echo $i
                return 0
        end
    end
    return 1
end

# Completes the command and its arguments as if run-with were not there.
function __run_with_complete_command
    set -l words (commandline -opc)
    set -l command (__run_with_command)
    set -l line (string escape -- $words[$command..-1]) (commandline -ct | string collect)
    complete -C (string join ' ' -- $line)
end

# The operands: options, and the command once there are options.
function __run_with_operands
    set -l before (commandline -ct | string replace -r '[^,]*$' '')
    set -l element (commandline -ct | string replace -r '^.*,' '')
    switch $element
        case 'async-teardown=*'
            printf '%s\n' {$before}async-teardown={on,off}
        case 'chroot=*'
            printf '%s\n' {$before}chroot=(__fish_complete_directories (string replace -r '^[^=]*=' '' -- $element) | string split -f 1 \t)
        case 'exit-with-parent=*'
            printf '%s\n' {$before}exit-with-parent={on,off}
        case 'user=*'
            printf '%s\n' {$before}user=(__fish_complete_users | string split -f 1 \t)
        case '*=*'
        case '*'
            printf '%s\t%s\n' {$before}async-teardown= 'free the memory after the exit, which is then immediate'
            printf '%s\t%s\n' {$before}chroot= 'make this directory the root'
            printf '%s\t%s\n' {$before}exit-with-parent= 'end when the parent process does'
            printf '%s\t%s\n' {$before}user= 'become this user'
            if string match -q -- '*=*' (commandline -opc)
                __fish_complete_command
            end
    end
end

complete -c run-with -f
complete -c run-with -n '__run_with_command >/dev/null' -a '(__run_with_complete_command)'
complete -c run-with -n 'not __run_with_command >/dev/null' -a '(__run_with_operands)'
complete -c run-with -n 'not __run_with_command >/dev/null' -s s -l signal -x -a 'HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS' -d 'what the command gets when the parent is gone [TERM]'
complete -c run-with -n 'not __run_with_command >/dev/null' -s k -l kill-after -x -d 'after how long SIGKILL follows; 0: never [10s]'
complete -c run-with -n 'not __run_with_command >/dev/null' -l tree -d 'end the command\'s whole tree with it'
complete -c run-with -n 'not __run_with_command >/dev/null' -l tree-by -x -a 'pid-namespace user-namespace cgroup' -d 'the same, by this mechanism'
complete -c run-with -n 'not __run_with_command >/dev/null' -l server -x -d 'run this (by the shell) while the command runs'
complete -c run-with -n 'not __run_with_command >/dev/null' -l ready -x -d 'when it is ready: unix, tcp[:PORT], file:PATH, line:TEXT, notify'
complete -c run-with -n 'not __run_with_command >/dev/null' -l ready-timeout -x -d 'how long it may take to be ready [30s]'
complete -c run-with -n 'not __run_with_command >/dev/null' -l uri -x -d '$uri for both, with $unixsocket and $port in it'
complete -c run-with -n 'not __run_with_command >/dev/null' -l run -x -d 'the command, by the shell'
complete -c run-with -n 'not __run_with_command >/dev/null' -l expect-parent -x -a '(__fish_complete_pids)' -d 'the parent is this process, or it is gone already'
complete -c run-with -n 'not __run_with_command >/dev/null' -l parent-fd -x -d 'the parent is behind this pidfd, or holds this pipe\'s other end'
complete -c run-with -n 'not __run_with_command >/dev/null' -l exec -d 'no supervisor: become the command (thread-scoped; see the manual)'
complete -c run-with -n 'not __run_with_command >/dev/null' -l no-forward -d 'do not pass signals on to the command'
complete -c run-with -n 'not __run_with_command >/dev/null' -l pidfile -r -F -d 'write the command\'s pid to FILE while it runs'
complete -c run-with -n 'not __run_with_command >/dev/null' -l status-fd -x -d 'write what happens to FD, a line of JSON each'
complete -c run-with -n 'not __run_with_command >/dev/null' -l mechanisms -d 'say what this machine offers and what would be used'
complete -c run-with -n 'not __run_with_command >/dev/null' -l json -d 'with --mechanisms: as JSON'
complete -c run-with -n 'not __run_with_command >/dev/null' -l generate -x -a 'man bash zsh fish' -d 'print the man page or a shell\'s completions'
complete -c run-with -n 'not __run_with_command >/dev/null' -s h -l help -d 'print this help'
complete -c run-with -n 'not __run_with_command >/dev/null' -s V -l version -d 'print the version'
