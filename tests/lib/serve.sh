# Starts our own server, or any that says on its first line where it listens. Sourced by servers.sh, whose `fail` and `stop_all` it uses.
# Everything is under $BENCH_TMP, on free ports of loopback; $COUNTERFOIL is the binary.

# start_server NAME COMMAND…: waits for its first line; sets STARTED (address) and STARTED_PID.
start_server() {
  local name=$1 try
  shift
  "$@" >"$BENCH_TMP/$name.out" 2>"$BENCH_TMP/$name.err" &
  STARTED_PID=$!
  BENCH_PIDS+=("$STARTED_PID")
  for try in $(seq 600); do
    STARTED=$(sed -n 's#^listening on http://##p' "$BENCH_TMP/$name.out")
    [ -n "$STARTED" ] && return
    kill -0 "$STARTED_PID" 2>/dev/null || break
    sleep 0.05
  done
  fail "$name does not start: $(tail -n 5 "$BENCH_TMP/$name.err")"
}

# start_counterfoil NAME LOG_URL VIEW_URL: sets STARTED, STARTED_PID, STARTED_MANAGEMENT. The same NAME again starts the same data.
start_counterfoil() {
  local key_files=() role
  mkdir -p "$BENCH_TMP/data-$1"
  if [ -f "$BENCH_TMP/key" ]; then key_files=(COUNTERFOIL__BOOTSTRAP__APPLICATION_KEY_FILE="$BENCH_TMP/key"); fi
  for role in application auditor operator; do
    if [ -f "$BENCH_TMP/key-$role" ]; then key_files+=("COUNTERFOIL__BOOTSTRAP__${role^^}_KEY_FILE=$BENCH_TMP/key-$role"); fi
  done
  start_server "$1" env NO_COLOR=1 \
    COUNTERFOIL__DATA_DIR="$BENCH_TMP/data-$1" COUNTERFOIL__SERVER__LISTEN=127.0.0.1:0 \
    COUNTERFOIL__MANAGEMENT__LISTEN=127.0.0.1:0 "${key_files[@]}" \
    COUNTERFOIL__LOG__URL="$2" COUNTERFOIL__VIEW__URL="$3" "$COUNTERFOIL" serve
  local try
  for try in $(seq 100); do
    STARTED_MANAGEMENT=$(sed -n 's#^management on http://##p' "$BENCH_TMP/$1.out")
    [ -n "$STARTED_MANAGEMENT" ] && return
    sleep 0.01
  done
  fail "$1 does not say where its management port is"
}

# make_keys: one for each role, in $BENCH_TMP/key-ROLE.
make_keys() {
  local role
  for role in application auditor operator; do
    (umask 077 && echo "cfk_$(head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n')" >"$BENCH_TMP/key-$role")
  done
}

make_key() {
  KEY=cfk_$(head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n')
  (umask 077 && echo "$KEY" >"$BENCH_TMP/key")
}
