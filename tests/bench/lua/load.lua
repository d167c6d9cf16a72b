-- The load of every step, set up by the environment, so that all servers get theirs from the same code:
--   BENCH_METHOD, BENCH_PATH, BENCH_BODY, BENCH_TYPE (media type), BENCH_KEY (API key), BENCH_RUN (a tag)
--   BENCH_ITEMS    file with one item a line; {item} in path, body and BENCH_COOKIE is one of them at random
--   BENCH_COLLECT  prefix of files to which each answer's BENCH_WHAT is written: session (token and id), id or cookie
--   BENCH_QUOTA    answers after which a thread stops, and says so by a file BENCH_DONE.<thread>: wrk itself goes on waiting
-- {n} in the body is a number that no other request of the run has, {t} the thread.
local env = os.getenv

local count = 0
function setup(thread)
  thread:set("thread_number", count)
  count = count + 1
end

local heads, tails, size, n = {}, {}, 0, 0
local collected, got, quota

function init(args)
  math.randomseed(tonumber(env("BENCH_SEED") or "1") + thread_number * 7919)
  local items = {}
  if env("BENCH_ITEMS") then
    for line in io.lines(env("BENCH_ITEMS")) do items[#items + 1] = line end
  else
    items[1] = ""
  end
  local function fill(text, item)
    return (text:gsub("{(%w+)}", function(word)
      if word == "item" then return item end
      if word == "t" then return tostring(thread_number) end
      if word == "run" then return env("BENCH_RUN") or "0" end
      if word == "n" then return "NNNNNNNN" end
    end))
  end
  for i, item in ipairs(items) do
    local headers = {}
    if env("BENCH_TYPE") then headers["Content-Type"] = env("BENCH_TYPE") end
    if env("BENCH_KEY") then headers["Authorization"] = "Bearer " .. env("BENCH_KEY") end
    if env("BENCH_COOKIE") then headers["Cookie"] = fill(env("BENCH_COOKIE"), item) end
    local body = env("BENCH_BODY") and fill(env("BENCH_BODY"), item) or nil
    local request = wrk.format(env("BENCH_METHOD") or "GET", fill(env("BENCH_PATH"), item), headers, body)
    local from, to = request:find("NNNNNNNN", 1, true)
    if from then
      heads[i], tails[i] = request:sub(1, from - 1), request:sub(to + 1)
    else
      heads[i] = request
    end
  end
  size = #heads
  if env("BENCH_COLLECT") then collected = io.open(env("BENCH_COLLECT") .. "." .. thread_number, "w") end
  quota, got = tonumber(env("BENCH_QUOTA") or "0"), 0
end

function request()
  local i = size == 1 and 1 or math.random(size)
  if tails[i] then
    n = n + 1
    return heads[i] .. string.format("%08d", n) .. tails[i]
  end
  return heads[i]
end

-- Defined only where it is wanted: with it, wrk parses every answer's header for Lua, which costs.
if env("BENCH_QUOTA") then
  function response(status, headers, body)
    if status < 200 or status > 299 or got >= quota then return end
    got = got + 1
    if collected then
      local what = env("BENCH_WHAT")
      if what == "cookie" then
        for name, value in pairs(headers) do
          if name:lower() == "set-cookie" then collected:write(value:match("^[^;]+"), "\n") end
        end
      elseif what == "id" then
        collected:write(body:match('"id":"([^"]+)"'), "\n")
      else
        collected:write(body:match('"token":"([^"]+)"'), " ", body:match('"id":"([^"]+)"'), "\n")
      end
    end
    if got == quota then
      if collected then collected:close() end
      io.open(env("BENCH_DONE") .. "." .. thread_number, "w"):close()
      wrk.thread:stop()
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d\n", summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, latency:percentile(50), latency:percentile(99)))
end
