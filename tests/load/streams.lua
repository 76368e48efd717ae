-- What wrk asks and checks: streamed answers, every one whole. engine/tests/load.rs runs it.
-- Prints one line of JSON: answers, failures with an example, tokens, errors of connections, and latencies in ms.

local threads = {}

function setup(thread)
    thread:set("id", #threads)
    table.insert(threads, thread)
end

function init(_)
    math.randomseed(id + 1)
    asked, answered, failed, tokens, example = 0, 0, 0, 0, ""
end

local headers = { ["content-type"] = "application/json" }

-- About 32 tokens of prompt, never the same twice, so that the prefix cache turns over all the time.
local function words()
    local numbers = {}
    for index = 1, 8 do
        numbers[index] = math.random(10, 99)
    end
    return "Continue the list of numbers: " .. table.concat(numbers, ", ") .. ","
end

function request()
    asked = asked + 1
    local common = string.format(
        '"model": "code", "stream": true, "stream_options": {"include_usage": true}, "temperature": 1, "seed": %d, "max_tokens": %d',
        asked * 64 + id,
        math.random(4, 24)
    )
    if asked % 2 == 0 then
        return wrk.format("POST", "/v1/completions", headers, string.format('{%s, "prompt": "%s"}', common, words()))
    end
    local messages = string.format('"messages": [{"role": "user", "content": "%s"}]', words())
    return wrk.format("POST", "/v1/chat/completions", headers, string.format("{%s, %s}", common, messages))
end

-- A key and not a text: sooner or later a model writes the word alone in a piece of its answer.
function response(status, _, body)
    local count = body:match('"completion_tokens":(%d+)')
    if status == 200 and count and body:sub(-14) == "data: [DONE]\n\n" and not body:find('"error":', 1, true) then
        answered = answered + 1
        tokens = tokens + tonumber(count)
        return
    end
    failed = failed + 1
    example = status .. " " .. body:sub(-200):gsub("[^%w%p ]", " "):gsub('["\\]', "'")
end

function done(summary, latency, _)
    local sum = { answered = 0, failed = 0, tokens = 0 }
    local shown = ""
    for _, thread in ipairs(threads) do
        for name, value in pairs(sum) do
            sum[name] = value + thread:get(name)
        end
        shown = thread:get("example") ~= "" and thread:get("example") or shown
    end
    local errors = summary.errors
    io.write(string.format(
        '{"answered": %d, "failed": %d, "example": "%s", "tokens": %d, "seconds": %.1f, "broken": %d, "timeouts": %d, "p50": %.0f, "p99": %.0f}\n',
        sum.answered, sum.failed, shown, sum.tokens, summary.duration / 1e6,
        errors.connect + errors.read + errors.write, errors.timeout,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
    ))
end
