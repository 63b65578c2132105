//! Plays a server of language models on this machine, with a small model behind it and any trouble that a test asks for.
//!
//! Every connection serves one request, on a thread of its own. What is likeliest is sorted out here anew, in f64, so that captures are
//! held against other arithmetic than the program's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use aludel_kernels::loss::map_logits;
use aludel_kernels::nn::Cpu;
use aludel_model::{Batch, Decoder, Keep, Tokenizer, Use};
use serde_json::{Map, Value, json};

/// What befalls a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Trouble {
    #[default]
    None,
    /// This status, with these seconds to wait.
    Status(u16, u32),
    /// The connection closes without an answer.
    Dropped,
    /// The answer breaks off in its middle.
    Cut,
    /// The answer comes after so many milliseconds.
    Late(u64),
    /// These bytes are the answer.
    Says(&'static str),
    /// The answer changes: what is said of the second token is this.
    Claims(&'static str),
}

/// Requests that it works on at once, where it says so.
pub(crate) const SLOTS: usize = 2;

/// What becomes of the request of this number, from 0, of all but the list of models.
pub(crate) type Fate = fn(usize) -> Trouble;

pub(crate) struct TeacherServer {
    /// Without `/v1`.
    pub(crate) url: String,
    state: Arc<State>,
}

struct State {
    teacher: Mutex<Decoder<Cpu>>,
    tokenizer: Tokenizer,
    fate: Fate,
    key: Option<&'static str>,
    /// The most alternatives that it gives.
    most: usize,
    /// The most tokens of a prompt and what is generated.
    room: usize,
    requests: AtomicUsize,
    /// Requests that are being answered now, and the most that ever were.
    now: AtomicUsize,
    at_once: AtomicUsize,
    /// What it was asked, bodies alone.
    bodies: Mutex<Vec<Value>>,
}

impl TeacherServer {
    /// A server of this model, under the name `scripture`.
    pub(crate) fn start(model: &Path, fate: Fate, key: Option<&'static str>) -> Self {
        let device = Arc::new(Cpu::new(None).unwrap());
        let state = Arc::new(State {
            teacher: Mutex::new(Decoder::open(model, device, Use::Frozen).unwrap()),
            tokenizer: Tokenizer::open(model).unwrap(),
            fate,
            key,
            most: 64,
            room: 66,
            requests: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            bodies: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                thread::spawn(move || {
                    let _ = state.serve(&stream);
                });
            }
        });
        Self { url, state }
    }

    /// The most requests that were ever answered at once, since this was asked.
    pub(crate) fn at_once(&self) -> usize {
        self.state.at_once.swap(0, Ordering::SeqCst)
    }

    /// The prompts that were asked for, those of probes too.
    pub(crate) fn prompts(&self) -> Vec<Vec<u64>> {
        let bodies = self.state.bodies.lock().unwrap();
        let ids = |body: &Value| {
            body["prompt"].as_array().into_iter().flatten().map(|id| id.as_u64().unwrap()).collect()
        };
        bodies.iter().map(ids).collect()
    }
}

impl State {
    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut length, mut key) = (0, None);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => key = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut stream = stream;
        if self.key.is_some() && key.as_deref() != self.key {
            return answer(
                &mut stream,
                401,
                0,
                &format!("wrong key {}", key.unwrap_or_default()),
                usize::MAX,
            );
        }
        if path == "/v1/models" {
            let models = json!({"object": "list", "data": [{"id": "scripture", "max_model_len": self.room}]});
            return answer(&mut stream, 200, 0, &models.to_string(), usize::MAX);
        }
        if path == "/props" {
            // As llama.cpp has it.
            let settings = json!({"n_ctx": self.room});
            let props = json!({"total_slots": SLOTS, "default_generation_settings": settings});
            return answer(&mut stream, 200, 0, &props.to_string(), usize::MAX);
        }
        if body.is_empty() {
            return answer(&mut stream, 404, 0, "no such path", usize::MAX);
        }
        let body: Value = serde_json::from_slice(&body).unwrap();
        self.bodies.lock().unwrap().push(body.clone());
        let trouble = (self.fate)(self.requests.fetch_add(1, Ordering::SeqCst));
        match trouble {
            Trouble::Status(status, wait) => return answer(&mut stream, status, wait, "busy", usize::MAX),
            Trouble::Dropped => return Ok(()),
            Trouble::Says(text) => return answer(&mut stream, 200, 0, text, usize::MAX),
            Trouble::Late(milliseconds) => thread::sleep(Duration::from_millis(milliseconds)),
            _ => {}
        }
        self.at_once.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let reply = match path.as_str() {
            "/v1/completions" => self.vllm(&body, trouble),
            "/generate" => self.sglang(&body),
            "/completion" => self.llama_cpp(&body),
            _ => Err((404, "no such path".to_owned())),
        };
        self.now.fetch_sub(1, Ordering::SeqCst);
        match reply {
            Ok(text) => {
                let sent = if matches!(trouble, Trouble::Cut) { text.len() / 2 } else { usize::MAX };
                answer(&mut stream, 200, 0, &text, sent)
            }
            Err((status, said)) => answer(&mut stream, status, 0, &said, usize::MAX),
        }
    }

    fn vllm(&self, body: &Value, trouble: Trouble) -> Result<String, (u16, String)> {
        assert_eq!((&body["model"], &body["temperature"]), (&json!("scripture"), &json!(1.0)));
        let prompt = ids(&body["prompt"]);
        let Some(k) = body["prompt_logprobs"].as_u64().map(|k| k as usize) else {
            return Ok(json!({"choices": [{"index": 0, "text": "", "logprobs": null}]}).to_string());
        };
        if k > self.most {
            let most = self.most;
            return Err((
                400,
                format!("Requested prompt logprobs of {k}, which is greater than max allowed: {most}"),
            ));
        }
        let mut said = vec![Value::Null];
        for (logits, &next) in self.logits(&prompt).iter().zip(&prompt[1..]) {
            let log_p = log_softmax(logits);
            let ranked = ranked(&log_p);
            let mut entries = Map::new();
            let rank = ranked.iter().position(|id| *id == next).unwrap();
            // The token of the text comes first, as it does there.
            for (rank, &id) in [(rank, &next)].into_iter().chain(ranked.iter().take(k).enumerate()) {
                let text = self.tokenizer.decode(&[id], true).unwrap();
                let log_p = log_p[id as usize];
                entries.insert(
                    id.to_string(),
                    json!({"logprob": log_p, "rank": rank + 1, "decoded_token": text}),
                );
            }
            said.push(Value::Object(entries));
        }
        if let Trouble::Claims(text) = trouble {
            said[1] = serde_json::from_str(text).unwrap();
        }
        let choice = json!({
            "index": 0, "text": "x", "logprobs": null, "finish_reason": "length", "stop_reason": null,
            "prompt_logprobs": said, "prompt_token_ids": null, "token_ids": null,
        });
        let usage = json!({"prompt_tokens": prompt.len(), "completion_tokens": 1});
        Ok(json!({"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage})
            .to_string())
    }

    fn sglang(&self, body: &Value) -> Result<String, (u16, String)> {
        let prompt = ids(&body["input_ids"]);
        let k = body["top_logprobs_num"].as_u64().unwrap() as usize;
        let mut said = vec![Value::Null];
        for logits in &self.logits(&prompt)[..prompt.len() - 1] {
            let log_p = log_softmax(logits);
            let one =
                |&id: &u32| json!([log_p[id as usize], id, self.tokenizer.decode(&[id], true).unwrap()]);
            said.push(ranked(&log_p)[..k].iter().map(one).collect());
        }
        Ok(json!({"text": "", "meta_info": {"prompt_tokens": prompt.len(), "input_top_logprobs": said}})
            .to_string())
    }

    fn llama_cpp(&self, body: &Value) -> Result<String, (u16, String)> {
        let prompt = ids(&body["prompt"]);
        let k = body["n_probs"].as_u64().unwrap() as usize;
        let log_p = log_softmax(self.logits(&prompt).last().unwrap());
        // The bias has a part in what comes next, and none in what is said of it.
        let mut biased = log_p.clone();
        for pair in body["logit_bias"].as_array().unwrap() {
            biased[pair[0].as_u64().unwrap() as usize] += pair[1].as_f64().unwrap();
        }
        let next = ranked(&biased)[0];
        // A part of a character is held back, and what is said of it: at times, all tokens but that of the bias stand for one.
        if self.tokenizer.decode(&[next], true).unwrap() != "a" && prompt.len() % 3 == 1 {
            return Ok(json!({"content": "\u{fffd}", "truncated": false}).to_string());
        }
        let one = |&id: &u32| {
            let text = self.tokenizer.decode(&[id], true).unwrap();
            json!({"id": id, "token": text, "bytes": [], "logprob": log_p[id as usize]})
        };
        let said: Vec<Value> = ranked(&log_p)[..k].iter().map(one).collect();
        let mut generated = one(&next);
        generated["top_logprobs"] = said.into();
        Ok(json!({"content": "x", "truncated": false, "completion_probabilities": [generated]}).to_string())
    }

    fn logits(&self, prompt: &[u32]) -> Vec<Vec<f32>> {
        let teacher = self.teacher.lock().unwrap();
        let batch = Batch::pack([prompt]);
        let pass = teacher.forward(&batch, Keep::Nothing, &[]).unwrap();
        let rows: Vec<usize> = (0..prompt.len()).collect();
        let (head, device) = (teacher.head(), teacher.device().as_ref());
        map_logits(device, (&head, pass.hidden()), &rows, 1 << 20, |_, logits| logits.to_vec()).unwrap()
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
    // Servers compute in f32.
    logits.iter().map(|z| f64::from((f64::from(*z) - sum.ln()) as f32)).collect()
}

fn ranked(log_p: &[f64]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..log_p.len() as u32).collect();
    ids.sort_by(|a, b| log_p[*b as usize].total_cmp(&log_p[*a as usize]));
    ids
}

fn answer(stream: &mut &TcpStream, status: u16, wait: u32, text: &str, sent: usize) -> std::io::Result<()> {
    let wait = if status == 429 { format!("Retry-After: {wait}\r\n") } else { String::new() };
    write!(
        stream,
        "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{wait}Content-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    )?;
    stream.write_all(&text.as_bytes()[..sent.min(text.len())])
}
