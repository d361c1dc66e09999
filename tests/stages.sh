# Sourced by tests/run: how a stage is run and counted. It streams its output, ends after $bound, and ends with us.
passed=0 failed=0 pid=
# A run that was killed with SIGKILL leaves its folder; the next one removes it.
for logs in target/run-*; do
    [ ! -d "$logs" ] || kill -0 "${logs#target/run-}" 2>/dev/null || rm -rf "$logs"
done
logs=target/run-$$
rm -rf "$logs" # of another machine's process of that number
mkdir -p "$logs" || exit 1
trap 'rm -rf "$logs"' EXIT
mkfifo "$logs/pipe" || exit 1

# leave STATUS: a signal came. timeout hands ours on to its process group, which is the stage and what it started.
leave() {
    trap '' HUP INT TERM
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null
        wait "$pid"
        end_group "$pid"
    fi
    exit "$1"
}
trap 'leave 129' HUP
trap 'leave 130' INT
trap 'leave 143' TERM

# end_group GROUP: nothing of it is left. Nobody else would ever end it, and it keeps the pipe open.
end_group() {
    kill -s TERM -- "-$1" 2>/dev/null || return 0
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        sleep 1
        kill -s 0 -- "-$1" 2>/dev/null || return 0
    done
    kill -s KILL -- "-$1" 2>/dev/null
}

# follow NAME COMMAND...: its exit status is then in $rc, its output in $logs/out.
follow() {
    name=$1
    shift
    echo "== $name"
    start=$(date +%s)
    tee "$logs/out" <"$logs/pipe" &
    tee=$!
    # The death signal is for when we are killed so that no trap is run.
    setpriv --pdeathsig TERM -- timeout --kill-after 1m "$bound" "$@" >"$logs/pipe" 2>&1 &
    pid=$!
    wait "$pid"
    rc=$?
    end_group "$pid"
    pid=
    if ! wait "$tee"; then
        echo "== $name: not all of its output could be kept"
        [ "$rc" -ne 0 ] || rc=1
    fi
    [ "$rc" -ne 124 ] || echo "== $name: ended after $bound"
    echo "== $name: exit $rc after $(($(date +%s) - start)) s"
}

# stage NAME COMMAND...: one case, which its exit status decides.
stage() {
    follow "$@"
    if [ "$rc" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}

# cases NAME COMMAND...: counts by itself. None that passed is a failure, and so is an exit status without a count.
cases() {
    follow "$@"
    # "test result: ok. 15 passed; 0 failed; ..." of cargo, "15 passed, 0 failed" of the lab
    counts=$(sed -n 's/^\(test result: [a-zA-Z]*\. \)\{0,1\}\([0-9]*\) passed[;,] \([0-9]*\) failed.*/\2 \3/p' "$logs/out" |
        awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
    p=${counts% *} f=${counts#* }
    [ "${f:-0}" -eq 0 ] && { [ "$rc" -ne 0 ] || [ "${p:-0}" -eq 0 ]; } && f=1
    passed=$((passed + ${p:-0}))
    failed=$((failed + f))
}

# finish: says how many, and ends.
finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
    exit
}
