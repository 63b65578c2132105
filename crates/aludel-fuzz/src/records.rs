//! What runs leave of themselves and are taken up by: checkpoints of trainings, parts of outputs, records of searches and trainings, digests.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

use aludel_checkpoint::DigestCache;
use aludel_distill::data::{Corpus, Cursor, Encoder, Origin, Rows, Stream, StreamSettings};
use aludel_distill::record::{Fact, Positions, Record, Summary, read_metrics, render};
use aludel_distill::run::Run;
use aludel_distill::state::{Best, Progress, States, VERSION};
use aludel_merge::execute::{ExecuteOptions, JoinOptions, MergeError, execute, join, parts_of};
use aludel_merge::plan::{Part, Plan, PlanOptions};
use aludel_merge::recipe::Recipe;
use aludel_model::Tokenizer;
use aludel_search::page::{self, Facts};
use aludel_search::{Log, Settings, Template, Variable, search};
use crc32c::crc32c;
use serde_json::{Value, json};

use crate::scratch::{fixture, folder, joined, names, parts};
use crate::texts::{MODELS, options, told, with_models};

/// A checkpoint of a training: the logs and the data are taken up where it says, and nothing is touched elsewhere.
pub(crate) fn state(bytes: &[u8]) {
    let files = [("states/step-00000001/state.json", bytes), ("run/metrics.jsonl", METRICS.as_bytes())];
    let path = folder(&files);
    let Ok(progress) = States::open(&path.join("states")).and_then(|states| states.read(1)) else { return };
    drop(Record::resume(&path.join("run"), &progress.record));
    assert_eq!(names(&path).len(), 2, "a file outside of the run's folder");
    let Ok(cursor) = serde_json::from_value::<Cursor>(progress.data) else { return };
    let (rows, encoder, settings) = &*DATA;
    if let Ok(mut stream) = Stream::resume(Arc::clone(rows), Arc::clone(encoder), *settings, &cursor) {
        drop(stream.next_step());
    }
}

const METRICS: &str =
    "{\"step\":1,\"phase\":\"train\",\"time\":1500000000.25,\"loss\":2.5,\"tokens\":4096.0}\n";

/// The data of a training.
static DATA: LazyLock<(Arc<Rows>, Arc<Encoder>, StreamSettings)> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = format!(
        "teacher: t\nstudent: s\noutput: o\ndata: {{train: '{}', sequence_length: 16}}\ntrain: {{steps: 4}}\n",
        root.join("tests/golden/data/texts.jsonl").display()
    );
    let run = Run::parse(&text).expect("a run");
    let tokenizer = Tokenizer::open(&root.join("examples/models/base")).expect("a tokenizer");
    let encoder = Encoder::new(Arc::new(tokenizer), &run.data).expect("an encoder");
    let rows = Corpus::open(&run.data).expect("rows").train;
    (Arc::new(rows), Arc::new(encoder), StreamSettings::training(&run.data, &run.train))
});

pub(crate) fn state_seeds() -> Vec<Vec<u8>> {
    let progress = |next: Origin, waiting: Vec<Vec<Origin>>| Progress {
        version: VERSION,
        run: json!({"seed": 1}),
        inputs: json!([]),
        steps: 4,
        step: 1,
        updates: 1,
        tokens: 32,
        data: serde_json::to_value(Cursor { next, waiting, left_out: 0 }).expect("a cursor"),
        annealing: None,
        record: Positions { metrics: 10, events: 0, event_file: "events.out.tfevents.1.aludel".into() },
        evaluated: Some(1),
        best: Some(Best::new(1, 0.5)),
        waited: 0,
    };
    let second = Origin { epoch: 1, position: 2, start: 0 };
    [progress(Origin::default(), Vec::new()), progress(second, vec![vec![Origin::default()]])]
        .map(|progress| serde_json::to_vec(&progress).expect("JSON"))
        .into()
}

/// The record of the one part of an output, with the checksums that its files have.
pub(crate) fn part(bytes: &[u8]) {
    const WEIGHTS: &[u8] = b"weights";
    let mut record: Result<Value, _> = serde_json::from_slice(bytes);
    let files = record.as_mut().ok().and_then(|record| record.get_mut("files")?.as_array_mut());
    for file in files.into_iter().flatten().filter_map(Value::as_object_mut) {
        file.insert("crc32c".into(), crc32c(WEIGHTS).into());
    }
    let text = record.map_or_else(|_| bytes.to_vec(), |record| record.to_string().into_bytes());
    let files = [
        ("out.parts/1-of-1/part.json", text.as_slice()),
        ("out.parts/1-of-1/model.safetensors", WEIGHTS),
        ("out.parts/1-of-1/config.json", b"{}"),
        ("outside", WEIGHTS),
    ];
    let path = folder(&files);
    let options = JoinOptions {
        replace: false,
        sync: false,
        threads: 1,
        cancel: &AtomicBool::new(false),
        on_progress: &|_, _| {},
    };
    match join(&path.join("out"), &options) {
        Ok(joined) => assert_eq!(joined.output, path.join("out")),
        Err(MergeError::Problems(problems)) => told(&problems),
        Err(_) => {}
    }
    let expected = ["out", "out.parts", "outside"];
    let strange = names(&path).into_iter().find(|name| !expected.contains(&name.as_str()));
    assert_eq!(strange, None, "a file outside of the output");
}

pub(crate) fn part_seeds() -> Vec<Vec<u8>> {
    let recipe = format!(
        "merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: {MODELS}/a}}, {{model: {MODELS}/b}}]\n"
    );
    let recipe = Recipe::parse(&with_models(recipe.as_bytes())).expect("a recipe");
    let whole = PlanOptions { shard_bytes: 1 << 12, part: Part { number: 1, of: 2 }, ..options() };
    let plan = Plan::new(&recipe, &whole).expect("a plan");
    let target = parts_of(&folder(&[]).join("out")).join("1-of-2");
    execute(&plan, &target, &ExecuteOptions { sync: false, ..ExecuteOptions::default() }).expect("a part");
    let mut record: Value =
        serde_json::from_slice(&fs::read(target.join("part.json")).expect("a record")).expect("JSON");
    record["of"] = 1.into();
    let mut files = record["files"].take();
    files.as_array_mut().expect("files").truncate(1);
    files[0]["name"] = "model.safetensors".into();
    record["files"] = files;
    let whole = record.to_string();
    record["of"] = u64::MAX.into();
    vec![whole.into_bytes(), record.to_string().into_bytes()]
}

/// The record of a training, `run.json` and `metrics.jsonl`, as a page.
pub(crate) fn report(bytes: &[u8]) {
    let [summary, metrics] = parts(bytes);
    let path = folder(&[("run.json", summary), ("metrics.jsonl", metrics)]);
    let summary = Summary::read(&path);
    let entries = read_metrics(&path.join("metrics.jsonl"));
    // One that is damaged is replaced, so that the other is rendered all the same.
    if summary.is_ok() || entries.is_ok() {
        sound(&render(&summary.unwrap_or_default(), &entries.unwrap_or_default()));
    }
}

/// Nothing that was said became an element of the page or a part of its scripts: those have names that pages are made of.
fn sound(page: &str) {
    const ELEMENTS: &[&str] = &[
        "!doctype",
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "p",
        "div",
        "span",
        "b",
        "i",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "figure",
        "figcaption",
        "svg",
        "path",
        "script",
    ];
    let script = page.rfind("<script>").expect("a script");
    for rest in page[..script].split('<').skip(1) {
        let name = rest.trim_start_matches('/');
        let name = &name[..name.find(|c: char| !c.is_ascii_alphanumeric() && c != '!').unwrap_or(name.len())];
        assert!(ELEMENTS.contains(&name), "<{name} in a page");
    }
}

pub(crate) fn report_seeds() -> Vec<Vec<u8>> {
    let summary = Summary {
        title: "<em>a</em> & 'b'".into(),
        settings: "teacher: <u>t</u>\n".into(),
        models: vec![Fact::new("student", "</td><a>")],
        environment: vec![Fact::new("<s>", 4)],
        steps: 4,
        outcome: "stopped <q>".into(),
    };
    let metrics = "{\"step\":1,\"phase\":\"train\",\"time\":15.25,\"loss\":2.5,\"tokens\":4096.0,\"memory_bytes\":1e9,\"</script><a>\":1}\n\
                   {\"step\":1,\"phase\":\"validation\",\"time\":15.5,\"loss\":null,\"accuracy\":0.5,\"kl\":0.25}\n\
                   {\"step\":9,\"phase\":\"train\",\"time\":16,\"loss\":1.5,\"tokens_per_second\":100}\n\
                   {\"step\":9,\"phase\":\"validation\",\"time\":17,\"loss\":-1e300,\"accuracy\":0.75,\"kl\":0.125}\n";
    vec![joined(&[&serde_json::to_vec(&summary).expect("JSON"), metrics.as_bytes()])]
}

const RECIPE: &str = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.5}}\n- {model: b, parameters: {weight: 0.25}}\n";
const VARIABLES: [&str; 2] = ["models[0].parameters.weight=0..1", "models[1].parameters.weight=-1..2"];

fn template() -> Template {
    let variables = VARIABLES.map(|variable| variable.parse().expect("a variable"));
    Template::new(RECIPE, variables.into()).expect("a template")
}

/// The candidates on the record of a search, which goes on from them, and their page.
pub(crate) fn searched(bytes: &[u8]) {
    let subject = json!({"recipe": RECIPE});
    let text = [subject.to_string().as_bytes(), b"\n", bytes].concat();
    let path = folder(&[("search.jsonl", &text)]).join("search.jsonl");
    let Ok(mut log) = Log::resume(&path, &subject) else { return };
    let template = template();
    let facts = Facts { title: "<a>", measure: "<u>", facts: &[("<q>".into(), "<s>".into())] };
    sound(&page::render(&facts, &template, log.evaluations()));
    go_on(&template, &mut log);
}

/// Scores some candidates by the number of their bytes.
fn go_on(template: &Template, log: &mut Log) {
    let settings = Settings {
        evaluations: 8,
        population: None,
        step: 0.3,
        seed: 1,
        cancel: &AtomicBool::new(false),
        on_evaluation: &|_| {},
    };
    let score = |text: &str| {
        let again = Template::new(text, template.variables().to_vec());
        assert!(again.is_ok(), "a candidate is no recipe with numbers in their ranges: {again:?}");
        Ok::<f64, String>(text.len() as f64)
    };
    drop(search(template, log, &settings, score));
}

pub(crate) fn searched_seeds() -> Vec<Vec<u8>> {
    let path = folder(&[]).join("search.jsonl");
    let mut log = Log::create(&path, &json!({})).expect("a log");
    go_on(&template(), &mut log);
    let text = fs::read_to_string(&path).expect("a log");
    vec![text.split_once('\n').expect("lines").1.as_bytes().to_vec()]
}

/// What varies, and the recipe that it stands in.
pub(crate) fn varied(bytes: &[u8]) {
    let [variable, recipe] = parts(bytes);
    let Ok(variable) = String::from_utf8_lossy(variable).parse::<Variable>() else { return };
    match Template::new(&String::from_utf8_lossy(recipe), vec![variable]) {
        Ok(template) => {
            let mut log = Log::create(&folder(&[]).join("search.jsonl"), &json!({})).expect("a log");
            go_on(&template, &mut log);
        }
        Err(problems) => told(&problems),
    }
}

pub(crate) fn varied_seeds() -> Vec<Vec<u8>> {
    let case = fixture("tests/golden/cases/della_linear-filters/recipe.yml");
    vec![
        joined(&[VARIABLES[0].as_bytes(), RECIPE.as_bytes()]),
        joined(&[
            b"models[0].parameters.weight,models[1].parameters.weight=0..1e3",
            "models: [{parameters: {weight: 1}}, {parameters: {weight: 1.0}}] # \u{e9}\n".as_bytes(),
        ]),
        joined(&[b"parameters.lambda=-1..2", &case]),
    ]
}

/// Digests that were remembered.
pub(crate) fn digests(bytes: &[u8]) {
    let path = folder(&[("digests.json", bytes), ("file", b"abc")]);
    let cache = DigestCache::at(path.join("digests.json"));
    let digest = cache.sha256(&path.join("file"), &mut |_| ControlFlow::Continue(())).expect("a digest");
    assert!(
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{digest:?} is no digest"
    );
}

pub(crate) fn digests_seeds() -> Vec<Vec<u8>> {
    let state = json!({"bytes": 3, "modified_ns": 1, "changed_ns": 2, "inode": 3, "device": 4});
    let entries = json!({"/a/model.safetensors": {"state": state, "sha256": "ab".repeat(32)}});
    vec![entries.to_string().into_bytes()]
}
