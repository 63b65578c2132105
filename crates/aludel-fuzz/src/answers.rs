//! What servers answer: the log-probabilities of a teacher, and the listing of a hub.

use aludel_distill::cache::read_answer;
use aludel_hub::read_listing;
use serde_json::json;

/// The answer of a server about a prompt of three tokens, by every protocol.
pub(crate) fn served(bytes: &[u8]) {
    let rows = read_answer(bytes, 3, K, VOCABULARY);
    let mut start = 0;
    for (&end, tail) in rows.ends.iter().zip(&rows.tails) {
        let ids = &rows.ids[start..end];
        assert!(ids.is_sorted_by(|a, b| a < b) && ids.len() <= K as usize, "columns that are not ascending");
        assert!(ids.iter().all(|&id| id < VOCABULARY), "a column beyond the vocabulary");
        assert!(rows.log_p[start..end].iter().all(|log_p| *log_p <= 0.0), "a probability above 1");
        assert!((0.0..=1.0).contains(tail), "{tail} is no probability");
        start = end;
    }
    assert_eq!((rows.ends.len(), start), (rows.tails.len(), rows.log_p.len()));
}

const K: u32 = 2;
const VOCABULARY: u32 = 40;

pub(crate) fn served_seeds() -> Vec<Vec<u8>> {
    let entry = |log_p: f64| json!({"logprob": log_p, "rank": 1, "decoded_token": "a"});
    let vllm = json!({"choices": [{"prompt_logprobs":
        [null, {"3": entry(-0.5), "7": entry(-1.5)}, {"1": entry(-0.25), "30": entry(-9.5), "2": entry(-3.0)}]}]});
    let sglang = json!({"meta_info": {"input_top_logprobs":
        [null, [[-0.5, 3, "a"], [-1.5, 7, null]], [[-0.25, 1, "b"], [-9999.0, 30, "c"]]]}});
    let llama_cpp = json!({"truncated": false, "total_slots": 2, "default_generation_settings": {"n_ctx": 64}, "completion_probabilities":
        [{"top_logprobs": [{"id": 3, "token": "a", "logprob": -0.5}, {"id": 7, "token": "b", "logprob": -1.5}]}]});
    [vllm, sglang, llama_cpp].map(|answer| answer.to_string().into_bytes()).into()
}

/// What a hub says of a model: names of files become paths, and digests names of files.
pub(crate) fn listing(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for (name, digest) in read_listing(&text).unwrap_or_default() {
        let stays = |part: &str| !["", ".", ".."].contains(&part) && !part.contains(['\\', ':', '\0']);
        assert!(name.split('/').all(stays), "{name:?} could leave its folder");
        assert!(digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest:?} is no digest");
    }
}

pub(crate) fn listing_seeds() -> Vec<Vec<u8>> {
    let (short, long) = ("0123456789abcdef01230123456789abcdef0123", "ab".repeat(32));
    let file = |name: &str| json!({"rfilename": name, "size": 12, "blobId": short});
    let large = |name: &str| json!({"rfilename": name, "size": 99, "blobId": short, "lfs": {"sha256": long, "size": 99}});
    let listing = |weights: &str, more: &str| json!({"sha": short, "siblings": [file("config.json"), large(weights), file(more), file("tokenizer.json")]});
    let sharded = "model-00001-of-00002.safetensors";
    [
        listing("model.safetensors", "README.md"),
        listing(sharded, "model.safetensors.index.json"),
        listing("pytorch_model.bin", "additional/chat_templates/a.jinja"),
        listing("adapter_model.safetensors", "adapter_config.json"),
    ]
    .map(|listing| listing.to_string().into_bytes())
    .into()
}
