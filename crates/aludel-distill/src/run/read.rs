//! Reads a whole run from its tree, and checks what has to hold between its parts.
//!
//! In: text. Out: a [`Run`] or every fault in it. A part that cannot be read is left out and reported, so that the rest is
//! still looked at; the run is returned only when nothing was reported.

use aludel_document::{Cursor, Key, Place, Problem, Problems, tree};

use super::fields::{self, Fields};
use super::teacher::Teacher;
use super::{KeptLayers, Loss, Run, Student, Taid, Validation, data, objective, teacher, train};

const KEYS: &[Key] = &[
    Key::read("teacher"),
    Key::read("student"),
    Key::read("data"),
    Key::read("objective"),
    Key::read("taid"),
    Key::read("train"),
    Key::read("output"),
];
const STUDENT: &[Key] = &[Key::read("from_teacher"), Key::read("config"), Key::read("seed")];
const FROM_TEACHER: &[Key] = &[Key::read("layers"), Key::read("every"), Key::read("heads"), Key::read("ffn")];

/// What a key that stands one level too high probably wants.
const OTHERWISE: &str = "settings stand under `data:`, `objective:` or `train:`";

pub(super) fn run(text: &str) -> Result<Run, Problems> {
    let mut problems = Problems::new();
    let run = tree::read(text, "run", &mut problems).and_then(|root| {
        let root = Cursor::root(&root);
        if root.node.is_mapping() {
            whole(root, &mut problems)
        } else {
            problems.push(not_a_run(&root));
            None
        }
    });
    match run {
        Some(run) if problems.is_empty() => Ok(run),
        _ => Err(problems.in_order_of_place()),
    }
}

fn not_a_run(root: &Cursor<'_>) -> Problem {
    let problem =
        if root.node.is_nothing() { root.problem("the run is empty") } else { root.mismatch("a mapping") };
    problem.with_hint("a run has `student:`, `data:` and `output:`, and a `teacher:` to distil from")
}

fn whole(root: Cursor<'_>, problems: &mut Problems) -> Option<Run> {
    let section = |key| root.field(key);
    let mut fields = Fields::open(root.clone(), KEYS, OTHERWISE, problems)?;
    let Teacher { live: teacher, cache, served } = teacher::read(&mut fields);
    let student = student(&mut fields);
    let output = fields.required_path("output", "name the folder to write, as in `output: out/`");
    if !fields.has("data") {
        let missing = root.problem("`data` is missing");
        fields.problems.push(missing.with_hint("say what to train on, as in `data: {train: [data.jsonl]}`"));
    }
    let data = section("data").and_then(|cursor| data::read(cursor, problems));
    let objective = match section("objective") {
        Some(cursor) => objective::read(cursor, problems),
        None => Some(objective::default(root.field("teacher").is_some())),
    };
    let taid = section("taid").and_then(|cursor| objective::read_taid(cursor, problems));
    let train = match section("train") {
        Some(cursor) => train::read(cursor, problems),
        None => Some(train::Train::default()),
    };
    let run = Run {
        teacher,
        cache,
        served,
        student: student?,
        data: data?,
        objective: objective?,
        taid,
        train: train?,
        output,
    };
    check(&run, &root, problems);
    Some(run)
}

fn student(fields: &mut Fields<'_, '_>) -> Option<Student> {
    let Some(cursor) = fields.cursor.field("student") else {
        let missing = fields.cursor.problem("`student` is missing");
        let hint = "name its folder, or make one with `student: {from_teacher: {every: 2}}`";
        fields.problems.push(missing.with_hint(hint));
        return None;
    };
    if !cursor.node.is_mapping() {
        return fields.path("student").map(Student::Model);
    }
    let hint = "a student that exists is written as text: `student: path/of/the/model`";
    let mut fields = Fields::open(cursor, STUDENT, hint, fields.problems)?;
    match (fields.cursor.field("from_teacher"), fields.has("config")) {
        (Some(_), true) => {
            fields.report("config", "`from_teacher` and `config` exclude each other", "keep one of them");
            None
        }
        (Some(cursor), false) => {
            if fields.has("seed") {
                fields.report(
                    "seed",
                    "`seed` is for random weights, and the teacher brings its own",
                    "remove it",
                );
            }
            from_teacher(Fields::open(cursor, FROM_TEACHER, "", fields.problems)?)
        }
        (None, true) => {
            let config = fields.path("config")?;
            Some(Student::FromConfig { config, seed: fields.count("seed", 0, 0) })
        }
        (None, false) => {
            fields.report("config", "the student has no source", "give `from_teacher:` or `config:`");
            None
        }
    }
}

fn from_teacher(mut fields: Fields<'_, '_>) -> Option<Student> {
    if fields.has("layers") && fields.has("every") {
        fields.report("every", "`layers` and `every` exclude each other", "keep one of them");
    }
    let every = fields.optional_count("every", 1).map(KeptLayers::Every);
    let layers = fields.read("layers", kept_layers).or(every).unwrap_or(KeptLayers::All);
    let heads = fields.optional_count("heads", 1);
    let ffn = fields.optional_count("ffn", 1);
    Some(Student::FromTeacher { layers, heads, ffn })
}

/// Layers in ascending order: a student that has the teacher's layers in another order is no part of it.
fn kept_layers(value: &Cursor<'_>) -> Result<KeptLayers, Problem> {
    let items = value.items().map_err(|problem| problem.with_hint("as in `layers: [0, 2, 4]`"))?;
    let layers = items.iter().map(|item| fields::count(item, 0)).collect::<Result<Vec<_>, _>>()?;
    if layers.is_empty() {
        return Err(value.problem("the list is empty").with_hint("keep at least one layer"));
    }
    match layers.windows(2).zip(&items[1..]).find(|(pair, _)| pair[0] >= pair[1]) {
        None => Ok(KeptLayers::These(layers)),
        Some((pair, item)) => Err(item
            .problem(format!("layer {} comes after layer {}", pair[1], pair[0]))
            .with_hint("list layers in ascending order, each once")),
    }
}

/// What has to hold between the parts of a run.
fn check(run: &Run, root: &Cursor<'_>, problems: &mut Problems) {
    let place = |keys: &[&str]| -> Place {
        let deepest = keys.iter().try_fold(root.clone(), |cursor, key| cursor.field(key));
        deepest.map_or_else(|| root.place(), |cursor| cursor.place())
    };
    let mut report = |keys: &[&str], message: &str, hint: &str| {
        problems.push(Problem::at(place(keys), message).with_hint(hint));
    };
    let has_teacher = run.teacher.is_some() || run.cache.is_some() || run.served.is_some();
    if !has_teacher && run.objective.needs_teacher() {
        let hint = "add `teacher:`, or learn from the labels alone with `cross_entropy`";
        report(&["objective"], "a term compares with a teacher, and the run has none", hint);
    }
    if run.teacher.is_none() && matches!(run.student, Student::FromTeacher { .. }) {
        let hint = match (&run.cache, &run.served) {
            (Some(_), _) => "a cache has no layers: name a model folder",
            (_, Some(_)) => "a served teacher has no layers to take: name a model folder",
            _ => "add `teacher:`",
        };
        report(&["student", "from_teacher"], "the run has no teacher to take layers from", hint);
    }
    if run.cache.is_some() && run.objective.hidden().next().is_some() {
        let hint = "name the teacher itself, or compare distributions only";
        report(&["objective"], "a cache has no hidden states of layers to compare with", hint);
    }
    if run.served.is_some() && run.objective.hidden().next().is_some() {
        let hint = "name a model folder as the teacher, or compare distributions only";
        report(&["objective"], "a served teacher has no hidden states of layers to compare with", hint);
    }
    if run.objective.is_sorted() {
        let is_other = |loss: &Loss| !matches!(loss, Loss::Uld(_) | Loss::CrossEntropy);
        if run.objective.terms.iter().any(|term| is_other(&term.loss)) {
            let hint = "keep `uld` and `cross_entropy`, or take `uld` out where both have the same tokens";
            report(&["objective"], "`uld` stands with no other term that compares with a teacher", hint);
        }
        if run.taid.is_some() {
            report(&["taid"], "`uld` has no target that moves", "remove `taid`");
        }
        let of_cache = run.cache.as_ref().map(|cache| cache.tokenizer.is_some() || cache.model.is_some());
        let of_served = run.served.as_ref().map(|served| served.tokenizer.is_some());
        if of_cache.or(of_served) == Some(false) {
            let hint = "name the folder with the teacher's tokenizer.json: `tokenizer:` under `teacher:`";
            report(&["teacher"], "`uld` needs the tokenizer that the teacher's rows are in", hint);
        }
    } else if run.cache.as_ref().is_some_and(|cache| cache.tokenizer.is_some()) {
        let hint = "remove it, or compare with `loss: uld`";
        report(&["teacher", "tokenizer"], "only `uld` reads by a tokenizer of the teacher's own", hint);
    }
    if run.taid.is_some() && run.objective.divergences().is_empty() {
        let hint = "add a divergence such as `forward_kl` to `objective`, or remove `taid`";
        report(&["taid"], "no term of the objective compares distributions", hint);
    }
    let compares_logits = run.objective.terms.iter().any(|term| matches!(term.loss, Loss::LogitsMse(_)));
    if matches!(run.taid, Some(Taid::Mixture(_))) && compares_logits {
        let hint = "use `variant: published`, or another loss than `logits_mse`";
        report(&["taid"], "a mixture of probabilities has no logits for `logits_mse` to compare", hint);
    }
    if run.train.early_stopping.is_some() && run.data.validation.is_none() {
        let hint = "add `validation:` under `data:`, as in `validation: 0.01`";
        report(&["train", "early_stopping"], "the run has no validation data to judge by", hint);
    }
    if run.train.early_stopping.is_some() && run.train.evaluate_every.is_none() {
        let hint = "add `evaluate_every:`, as in `evaluate_every: 100`";
        report(&["train", "early_stopping"], "the student is evaluated at the end only", hint);
    }
    if run.train.evaluate_every.is_some() && run.data.validation.is_none() {
        let hint = "add `validation:` under `data:`, as in `validation: 0.01`";
        report(&["train", "evaluate_every"], "the run has no validation data to evaluate on", hint);
    }
    if let Some(Validation::Files(files)) = &run.data.validation
        && files.iter().any(|file| run.data.train.contains(file))
    {
        let hint = "name another file, or a share of the rows, as in `validation: 0.01`";
        report(&["data", "validation"], "a file is trained on and evaluated on", hint);
    }
    let student = match &run.student {
        Student::Model(path) => Some(path),
        _ => None,
    };
    if student == Some(&run.output) || run.teacher.as_ref() == Some(&run.output) {
        report(&["output"], "the output is a folder that the run reads", "name a new folder");
    }
}

/// For the test of the reference.
#[cfg(test)]
pub(super) const ALL_KEYS: [&[Key]; 5] = [KEYS, teacher::CACHE, teacher::SERVED, STUDENT, FROM_TEACHER];
