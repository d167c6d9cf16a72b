# Starts and stops Debian's PostgreSQL and Redis, and servers that say on their first line where they listen. To be sourced.
# Everything is on loopback and a free port, under $BENCH_TMP, and stopped by process id.

BENCH_PIDS=()

fail() { echo "$0: $*" >&2; exit 1; }

install_packages() { # only what is missing, and only where this may be done
  [ $# -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "missing: $*; install them, or run as root on Debian"
  echo "installing: $*" >&2
  # A fresh machine has no package lists; one that was used may have old ones.
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"; } >/dev/null 2>&1 \
    || fail "could not install: $*"
}

# need TOOL…: installs the Debian packages of those that are missing.
need() {
  local tool missing=()
  for tool; do
    case $tool in
      initdb) ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing+=(postgresql) ;;
      psql) command -v psql >/dev/null || missing+=(postgresql-client) ;;
      redis-cli) command -v redis-cli >/dev/null || missing+=(redis-tools) ;;
      *) command -v "$tool" >/dev/null || missing+=("$tool") ;;
    esac
  done
  install_packages "${missing[@]}"
}

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 30000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

# As PostgreSQL wants it: never as root.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi
}

# start_postgres [ARGUMENT…]: sets PG_PORT, PG_PID, PG_BIN; user postgres, trust on loopback, fsync on.
start_postgres() {
  local try
  PG_BIN=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
  [ -n "$PG_BIN" ] || PG_BIN=$(dirname "$(command -v initdb)") || fail "PostgreSQL's initdb is missing"
  mkdir -p "$BENCH_TMP/pg"
  if [ "$(id -u)" = 0 ]; then chown postgres: "$BENCH_TMP/pg"; chmod 711 "$BENCH_TMP"; fi
  (cd / && as_postgres "$PG_BIN/initdb" -D "$BENCH_TMP/pg/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8) \
    >"$BENCH_TMP/initdb.log" 2>&1 || fail "initdb failed: $(tail -n 3 "$BENCH_TMP/initdb.log")"
  PG_PORT=$(free_port)
  local command=("$PG_BIN/postgres" -D "$BENCH_TMP/pg/data" -p "$PG_PORT" -c listen_addresses=127.0.0.1
    -c unix_socket_directories="$BENCH_TMP/pg" -c fsync=on -c synchronous_commit=on -c max_connections=200 "$@")
  if [ "$(id -u)" = 0 ]; then command=(setpriv --reuid=postgres --regid=postgres --clear-groups "${command[@]}"); fi
  "${command[@]}" >"$BENCH_TMP/postgres.log" 2>&1 &
  PG_PID=$!
  for try in $(seq 100); do
    "$PG_BIN/pg_isready" -q -h 127.0.0.1 -p "$PG_PORT" && return
    sleep 0.1
  done
  fail "PostgreSQL does not start: $(tail -n 3 "$BENCH_TMP/postgres.log")"
}

# pg_sql DATABASE SQL
pg_sql() { psql -qAtX -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$PG_PORT" -U postgres -d "$1" -c "$2"; }

# pg_url DATABASE [USER]
pg_url() { echo "postgres://${2:-postgres}@127.0.0.1:$PG_PORT/$1"; }

# start_redis: sets REDIS_PORT, REDIS_PID. Nothing is kept on disk.
start_redis() {
  local try
  REDIS_PORT=$(free_port)
  redis-server --bind 127.0.0.1 --port "$REDIS_PORT" --save "" --appendonly no --dir "$BENCH_TMP" \
    >"$BENCH_TMP/redis.log" 2>&1 &
  REDIS_PID=$!
  for try in $(seq 100); do
    [ "$(redis-cli -h 127.0.0.1 -p "$REDIS_PORT" ping 2>/dev/null)" = PONG ] && return
    sleep 0.1
  done
  fail "Redis does not start"
}

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

# counterfoil_database NAME: makes it, migrates it as its owner, and makes a login that is no more than the log's writer.
counterfoil_database() {
  pg_sql postgres "CREATE DATABASE $1"
  COUNTERFOIL__LOG__URL=$(pg_url "$1") COUNTERFOIL__DATA_DIR=$BENCH_TMP/migrate-$1 "$COUNTERFOIL" migrate \
    >"$BENCH_TMP/migrate-$1.log" 2>&1 || fail "migrate failed: $(tail -n 5 "$BENCH_TMP/migrate-$1.log")"
  [ -n "$(pg_sql postgres "SELECT 1 FROM pg_roles WHERE rolname = 'bench'")" ] || pg_sql postgres "CREATE ROLE bench LOGIN"
  pg_sql postgres "SET client_min_messages = warning; GRANT counterfoil_writer TO bench"
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

# stop_pid PID [SIGNAL]: waits until it is gone.
stop_pid() {
  kill "-${2:-TERM}" "$1" 2>/dev/null
  wait "$1" 2>/dev/null
}

stop_all() {
  local pid
  trap - EXIT
  for pid in "${BENCH_PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null; done
  for pid in "${BENCH_PIDS[@]}"; do wait "$pid" 2>/dev/null; done
  [ -z "${REDIS_PID:-}" ] || stop_pid "$REDIS_PID"
  [ -z "${PG_PID:-}" ] || stop_pid "$PG_PID" INT
  if [ -n "${BENCH_KEEP:-}" ]; then echo "kept: $BENCH_TMP" >&2; else rm -rf "$BENCH_TMP"; fi
}

# wrk_count COUNT CONNECTIONS URL, with BENCH_* of the request in the environment: loads until so many are answered with 2xx, and a few
# more, and prints what wrk prints. wrk knows only durations, so its threads are watched and it is told to end.
wrk_count() {
  local threads=2 pid
  rm -f "$BENCH_TMP/done".*
  BENCH_QUOTA=$((($1 + threads - 1) / threads)) BENCH_DONE=$BENCH_TMP/done \
    wrk -t $threads -c "$2" -d 7200s --timeout 30s -s "$BENCH/lua/load.lua" "$3" >"$BENCH_TMP/wrk.out" 2>&1 &
  pid=$!
  BENCH_PIDS+=("$pid")
  while kill -0 $pid 2>/dev/null; do
    [ -e "$BENCH_TMP/done.0" ] && [ -e "$BENCH_TMP/done.1" ] && kill -INT $pid
    sleep 0.05
  done
  wait $pid
  cat "$BENCH_TMP/wrk.out"
}

# collect NAME WHAT COUNT CONNECTIONS URL: as wrk_count, and what the answers hold goes to $BENCH_TMP/collect-NAME.all.
collect() {
  rm -f "$BENCH_TMP/collect-$1".*
  BENCH_COLLECT="$BENCH_TMP/collect-$1" BENCH_WHAT=$2 wrk_count "$3" "$4" "$5" >"$BENCH_TMP/collect-$1.log"
  cat "$BENCH_TMP/collect-$1".[0-9]* >"$BENCH_TMP/collect-$1.all"
  [ "$(wc -l <"$BENCH_TMP/collect-$1.all")" -ge "$3" ] || fail "$1: the sessions could not be made: $(cat "$BENCH_TMP/collect-$1.log")"
}
