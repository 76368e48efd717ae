-- What wrk asks in tests/bench_server.py: whole answers to prompts of 32 tokens, the same requests of every server.
-- Prints one line of JSON: answers, failures with an example, tokens, seconds.

function init(_)
    math.randomseed(7)
    answered, failed, tokens, example = 0, 0, 0, ""
end

function setup(thread)
    only = thread
end

-- Ids that every vocabulary has, never the same prompt twice. The lengths differ, so that answers do not end in step.
function request()
    local ids = {}
    for index = 1, 32 do
        ids[index] = math.random(100, 30000)
    end
    local body = string.format(
        '{"model": "bench", "prompt": [%s], "max_tokens": %d, "temperature": 0, "ignore_eos": true}',
        table.concat(ids, ","),
        math.random(16, 48)
    )
    return wrk.format("POST", "/v1/completions", { ["content-type"] = "application/json" }, body)
end

function response(status, _, body)
    local count = body:match('"completion_tokens":%s*(%d+)')
    if status == 200 and count then
        answered = answered + 1
        tokens = tokens + tonumber(count)
        return
    end
    failed = failed + 1
    example = status .. " " .. body:sub(1, 200):gsub("[^%w%p ]", " "):gsub('["\\]', "'")
end

function done(summary, _, _)
    local errors = summary.errors
    io.write(string.format(
        '{"answered": %d, "failed": %d, "example": "%s", "tokens": %d, "seconds": %.3f}\n',
        only:get("answered"),
        only:get("failed") + errors.connect + errors.read + errors.write + errors.timeout,
        only:get("example"),
        only:get("tokens"),
        summary.duration / 1e6
    ))
end
