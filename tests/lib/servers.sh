# Starts and stops Debian's PostgreSQL and Redis; serve.sh, which it brings along, starts our own server. To be sourced.
# Everything is on loopback and a free port, under $BENCH_TMP, and stopped by process id.

. "$(dirname "${BASH_SOURCE[0]}")/serve.sh"

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

# What cargo needs beside the Rust toolchain: the headers of OpenSSL, what finds them, and a C compiler.
install_build_needs() {
  local missing=()
  command -v pkg-config >/dev/null || missing+=(pkg-config)
  [ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
  command -v cc >/dev/null || missing+=(build-essential)
  install_packages "${missing[@]}"
}

# make_venv FOLDER PACKAGE…: a Python environment with these packages, or the old one of that folder. A fresh Debian has no python3,
# and its python3 comes without venv. In a subshell, because the caller may do without: it answers 1 and says why.
make_venv() (
  folder=$1
  shift
  [ -x "$folder/bin/python" ] && exit
  python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3 python3-venv
  python3 -m venv "$folder" && "$folder/bin/pip" --quiet --disable-pip-version-check install "$@" && exit
  rm -rf "$folder" # half made, it would pass for whole
  exit 1
)

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

# recycle_wal MB: writes that much WAL and has its segments kept for use again.
recycle_wal() {
  local chunk
  pg_sql postgres "CREATE TABLE filling (text text)"
  for chunk in $(seq $(($1 / 60))); do
    pg_sql postgres "INSERT INTO filling SELECT repeat(md5(n::text), 30) FROM generate_series(1, 60000) AS n"
  done
  pg_sql postgres "DROP TABLE filling"
  pg_sql postgres CHECKPOINT
  pg_sql postgres "SELECT pg_switch_wal()" >/dev/null
  pg_sql postgres CHECKPOINT
}

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

# counterfoil_database NAME: makes it, migrates it as its owner, and makes a login that is no more than the log's writer.
counterfoil_database() {
  pg_sql postgres "CREATE DATABASE $1"
  COUNTERFOIL__LOG__URL=$(pg_url "$1") COUNTERFOIL__DATA_DIR=$BENCH_TMP/migrate-$1 "$COUNTERFOIL" migrate \
    >"$BENCH_TMP/migrate-$1.log" 2>&1 || fail "migrate failed: $(tail -n 5 "$BENCH_TMP/migrate-$1.log")"
  [ -n "$(pg_sql postgres "SELECT 1 FROM pg_roles WHERE rolname = 'bench'")" ] || pg_sql postgres "CREATE ROLE bench LOGIN"
  pg_sql postgres "SET client_min_messages = warning; GRANT counterfoil_writer TO bench"
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
