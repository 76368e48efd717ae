//! Fields of vLLM and llama.cpp that would change an answer and that this server does not act on.
//!
//! Unknown fields are left alone, as with OpenAI. These are known: a client that sends one counts on it, so it is told
//! instead of getting another answer than it asked for. The value with which a field changes nothing is taken.

use super::fields::Fields;
use super::openai::ApiError;
use serde_json::Value;

/// With which value a field changes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Neutral {
    /// `false`, 0, or nothing in it.
    Off,
    On,
    Number(f64),
    /// None has.
    Never,
}

use Neutral::{Never, Number, Off, On};

const LEAVE_OUT: &str = "leave it out";

/// Of every generating API.
const ALWAYS: &[(&str, Neutral, &str)] = &[
    // vLLM's.
    ("use_beam_search", Off, "ask for n choices instead"),
    ("length_penalty", Number(1.0), LEAVE_OUT),
    ("prompt_logprobs", Never, "use /v1/completions with echo and logprobs"),
    ("truncate_prompt_tokens", Never, "shorten the prompt, which /tokenize counts"),
    ("logits_processors", Off, "use logit_bias"),
    ("bad_words", Off, "use logit_bias"),
    ("allowed_token_ids", Off, "use logit_bias, or a grammar"),
    ("skip_special_tokens", On, "use logprobs, which show them"),
    ("return_tokens_as_token_ids", Off, LEAVE_OUT),
    ("prompt_embeds", Off, "send text or token ids"),
    ("thinking_token_budget", Never, "use reasoning_effort"),
    // llama.cpp's.
    ("n_predict", Number(-1.0), "use max_tokens"),
    ("repeat_penalty", Number(1.0), "use repetition_penalty"),
    ("mirostat", Off, "use temperature, top_p or min_p"),
    ("dynatemp_range", Off, "use temperature"),
    ("xtc_probability", Off, LEAVE_OUT),
    ("dry_multiplier", Off, "use frequency_penalty"),
    ("top_n_sigma", Number(-1.0), "use min_p"),
    ("tfs_z", Number(1.0), "use top_p"),
    ("samplers", Off, "leave it out: the order is fixed"),
    ("n_probs", Off, "use logprobs"),
    ("post_sampling_probs", Off, "use logprobs"),
    ("t_max_predict_ms", Off, "use max_tokens"),
    ("lora", Off, LEAVE_OUT),
];

/// Of chats alone.
const CHAT: &[(&str, Neutral, &str)] = &[
    ("echo", Off, "use continue_final_message, or /v1/completions"),
    ("chat_template", Off, "start the server with --chat-template"),
    ("documents", Off, "put them into a message"),
    ("add_special_tokens", Off, "use /v1/completions, which takes a prompt as it is"),
];

/// Of plain completions alone.
const COMPLETIONS: &[(&str, Neutral, &str)] =
    &[("add_special_tokens", On, "send token ids, which are taken as they are")];

/// Refuses what every API would ignore.
///
/// # Errors
/// One of the fields is there with a value that means something.
pub fn refuse(fields: &Fields) -> Result<(), ApiError> {
    refuse_all(fields, ALWAYS)
}

/// Refuses what chats would ignore.
///
/// # Errors
/// As [`refuse`].
pub fn refuse_in_chat(fields: &Fields) -> Result<(), ApiError> {
    refuse_all(fields, CHAT)
}

/// Refuses what completions would ignore.
///
/// # Errors
/// As [`refuse`].
pub fn refuse_in_completions(fields: &Fields) -> Result<(), ApiError> {
    refuse_all(fields, COMPLETIONS)
}

fn refuse_all(fields: &Fields, list: &[(&str, Neutral, &str)]) -> Result<(), ApiError> {
    for (name, neutral, remedy) in list {
        let harmless = |value: &Value| match neutral {
            Off | Never => false,
            On => *value == Value::Bool(true),
            Number(number) => value.as_f64() == Some(*number),
        };
        match fields.get(name) {
            Some(_) if *neutral == Off => fields.refuse(name, remedy)?,
            Some(value) if !harmless(value) => return Err(ApiError::unsupported(&fields.path(name), remedy)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_would_change_the_answer_is_refused_by_its_name() {
        for (field, harmless, wanted) in [
            ("use_beam_search", json!(false), json!(true)),
            ("length_penalty", json!(1), json!(0.5)),
            ("skip_special_tokens", json!(true), json!(false)),
            ("prompt_logprobs", json!(null), json!(0)),
            ("bad_words", json!([]), json!(["x"])),
            ("mirostat", json!(0), json!(2)),
            ("n_predict", json!(-1), json!(5)),
            ("repeat_penalty", json!(1.0), json!(1.1)),
        ] {
            let read = |value: &Value| {
                let body = json!({field: value, "made_up": 1});
                refuse(&Fields::new(body.as_object().unwrap().clone()))
            };
            assert!(read(&harmless).is_ok(), "{field} {harmless}");
            let error = read(&wanted).unwrap_err().body();
            assert_eq!(
                (&error["error"]["param"], &error["error"]["code"]),
                (&json!(field), &json!("unsupported_parameter"))
            );
        }
        let only = json!({"echo": true, "add_special_tokens": true});
        let only = Fields::new(only.as_object().unwrap().clone());
        assert!(
            refuse(&only).is_ok() && refuse_in_completions(&only).is_ok() && refuse_in_chat(&only).is_err()
        );
    }
}
