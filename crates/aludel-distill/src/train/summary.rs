//! Says what a run is, for its record: models, data, what the settings came to, and where it ran.

use aludel_kernels::loss::LossDevice;
use aludel_model::Decoder;

use crate::inputs::Input;
use crate::prepare::Models;
use crate::record::{Fact, Summary};
use crate::run::{Run, Student};

/// The summary of a run that has not ended.
pub(super) fn of<D: LossDevice>(
    run: &Run,
    text: &str,
    models: &Models<D>,
    inputs: &[Input],
    steps: u64,
    environment: &[Fact],
) -> Summary {
    let output = run.output.display();
    let title = match run.teacher.as_ref().or(run.cache.as_ref().map(|cache| &cache.path)) {
        Some(teacher) => format!("{output}, taught by {}", teacher.display()),
        None => output.to_string(),
    };
    let mut facts = Vec::new();
    if let (Some(path), Some(teacher)) = (&run.teacher, &models.teacher) {
        facts.push(Fact::new("teacher", format!("{}: {}", path.display(), shape(teacher))));
    }
    if let Some(cache) = &run.cache {
        facts.push(Fact::new("teacher", format!("the cache {}", cache.path.display())));
    }
    facts.push(Fact::new("student", format!("{}: {}", origin(&run.student), shape(&models.student))));
    let trained: usize = models.student.parameters().trainable().map(|parameter| parameter.elements()).sum();
    facts.push(Fact::new("parameters trained", trained));
    let train = &run.train;
    let tokens = train.batch_size as u64 * run.data.sequence_length as u64;
    facts.push(Fact::new("tokens of a step, at the most", tokens));
    facts.push(Fact::new("micro-batches of a step", train.micro_batches()));
    for input in inputs {
        let what = format!("{} file", input.role.name());
        facts.push(Fact::new(
            what,
            format!("{} ({} bytes, SHA-256 {})", input.file, input.bytes, input.sha256),
        ));
    }
    let mut surroundings = vec![Fact::new("aludel", env!("CARGO_PKG_VERSION"))];
    surroundings.push(Fact::new("system", format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH)));
    surroundings.push(Fact::new("device", models.student.device().name()));
    surroundings.extend_from_slice(environment);
    Summary {
        title,
        settings: text.to_owned(),
        models: facts,
        environment: surroundings,
        steps,
        outcome: String::new(),
    }
}

fn origin(student: &Student) -> String {
    match student {
        Student::Model(path) => path.display().to_string(),
        Student::FromTeacher { .. } => "cut from the teacher".to_owned(),
        Student::FromConfig { config, .. } => format!("new, in the shape of {}", config.display()),
    }
}

/// `LlamaForCausalLM, 30 layers of width 576, vocabulary 49152, 134515008 parameters`.
fn shape<D: LossDevice>(model: &Decoder<D>) -> String {
    let config = model.config();
    let parameters: usize = model.parameters().iter().map(|parameter| parameter.elements()).sum();
    format!(
        "{} layers of width {}, vocabulary {}, {parameters} parameters",
        config.layers.len(),
        config.hidden,
        config.vocabulary
    )
}
