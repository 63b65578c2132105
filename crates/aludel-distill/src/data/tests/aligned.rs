//! Rows beside those of a teacher with other tokens: that both have read the same text, and that pieces and steps keep them together.

use aludel_kernels::loss::IGNORED;

use super::*;

/// A tokenizer of single bytes, whose end-of-text token is 256 and whose chat template differs from the student's.
fn bytes_tokenizer(folder: &Folder) -> Arc<Tokenizer> {
    let text = std::fs::read_to_string(workspace().join("examples/models/base/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap().keys();
    let mut bytes: Vec<&String> = vocabulary.filter(|token| token.chars().count() == 1).collect();
    // Another order than the student's.
    bytes.sort_by_key(|token| std::cmp::Reverse(*token));
    assert_eq!(bytes.len(), 256);
    let mut ids: serde_json::Map<_, _> =
        bytes.into_iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    ids.insert("<|endoftext|>".to_owned(), 256.into());
    json["model"]["vocab"] = ids.into();
    json["model"]["merges"] = serde_json::json!([]);
    json["added_tokens"][0]["id"] = 256.into();
    folder.write("tokenizer.json", json.to_string());
    folder.write("tokenizer_config.json", "{\"eos_token\": \"<|endoftext|>\"}");
    folder.write(
        "chat_template.jinja",
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}</>!{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
    );
    Arc::new(Tokenizer::open(folder.0.path()).unwrap())
}

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// A case with rows for both, of a live teacher or of a cache with pieces of `sequence_length`.
fn case(rows: &[serde_json::Value], data: &str, is_cached: bool) -> (Folder, Arc<Tokenizer>, Stream) {
    let folder = Folder::new();
    let template = folder.write("template.jinja", TEMPLATE);
    let lines: Vec<String> = rows.iter().map(|row| row.to_string() + "\n").collect();
    let path = folder.write("a.jsonl", lines.concat());
    let data = format!("chat_template: \"{}\", {data}", template.display());
    let run = run(&[&path], &data, "objective: uld\nteacher: t\ntrain: {batch_size: 3}\n");
    let teacher = bytes_tokenizer(&folder);
    let pieces = is_cached.then_some(run.data.sequence_length);
    let encoder = Encoder::new(tokenizer(), &run.data)
        .unwrap()
        .with_teacher(teacher.clone(), &run.teachers_data(), pieces)
        .unwrap();
    let rows = Arc::new(Corpus::open(&run.data).unwrap().train);
    (folder, teacher, Stream::new(rows, Arc::new(encoder), StreamSettings::training(&run.data, &run.train)))
}

/// What both have read where they are compared: of each pair, the texts that end there.
fn pairs(stream: &mut Stream, teacher: &Tokenizer) -> Vec<(String, String)> {
    let read = |tokenizer: &Tokenizer, part: &MicroBatch, row: usize| {
        let documents = &part.batch.documents;
        let document = documents.iter().find(|document| document.contains(&row)).unwrap();
        tokenizer.decode(&part.batch.ids[document.start..=row], true).unwrap()
    };
    let mut pairs = Vec::new();
    while let Some(step) = stream.next_step().unwrap() {
        for part in &step.micro_batches {
            let aligned = part.aligned.as_ref().unwrap();
            assert_eq!(aligned.partners.len(), part.batch.ids.len());
            assert_eq!(part.compared(), aligned.partners.iter().flatten().count());
            for (row, partner) in aligned.partners.iter().enumerate() {
                let Some(partner) = *partner else { continue };
                assert_ne!((part.labels[row], aligned.teacher.labels[partner]), (IGNORED, IGNORED));
                pairs.push((read(&tokenizer(), part, row), read(teacher, &aligned.teacher, partner)));
            }
        }
    }
    pairs
}

#[test]
fn texts_have_been_read_alike_wherever_they_are_compared() {
    let texts =
        ["The alchemist heats the aludel", "Größe 日本語 🦀, and more", "  spaces\n\n\tand tabs  ", "x"];
    let rows: Vec<_> = texts.iter().map(|text| serde_json::json!({ "text": text })).collect();
    for is_cached in [false, true] {
        let (_folder, teacher, mut stream) = case(&rows, "shuffle: false, packing: false", is_cached);
        let pairs = pairs(&mut stream, &teacher);
        // The student's tokens but for the first of each text, which nothing predicts, and those inside a character.
        let boundaries = |text: &str| {
            let spans = tokenizer().spans(text).unwrap();
            1 + crate::data::align::beginnings(&spans).iter().skip(1).flatten().count()
        };
        assert_eq!(pairs.len(), texts.iter().map(|text| boundaries(text)).sum::<usize>());
        for (student, teacher) in &pairs {
            assert_eq!(student, teacher);
        }
        for text in texts {
            assert!(pairs.iter().any(|(student, _)| student == text), "the end of {text:?}");
        }
    }
}

#[test]
fn turns_are_compared_by_what_the_assistant_says() {
    let message = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let rows = [serde_json::json!({"messages": [
        message("user", "How hot is it?"), message("assistant", "Red heat."),
        message("user", "And now?"), message("assistant", "White heat, and éé"),
    ]})];
    for loss_on in ["completions", "all"] {
        let (_folder, teacher, mut stream) = case(&rows, &format!("loss_on: {loss_on}"), false);
        let pairs = pairs(&mut stream, &teacher);
        assert!(pairs.len() > 12, "{pairs:?}");
        let turn = |text: &str, marks: [&str; 2]| {
            let (at, mark) =
                marks.iter().filter_map(|mark| Some((text.rfind(mark)?, mark.len()))).max().unwrap();
            text[at + mark..].to_owned()
        };
        for (student, teacher) in &pairs {
            assert!(student.starts_with("<user>") && teacher.starts_with("[user]"));
            let said = turn(student, ["<assistant>", "<assistant>"]);
            assert_eq!(said, turn(teacher, ["[assistant] ", "[assistant] "]));
        }
        // The end of each turn is compared: both say `</>` after what is said, and go on differently after that.
        assert!(pairs.iter().any(|(student, _)| student.ends_with("<assistant>Red heat.")));
        assert!(pairs.iter().any(|(student, _)| student.ends_with("éé</>")), "{pairs:?}");
        // What the user says never is.
        assert!(!pairs.iter().any(|(student, _)| student.ends_with("And")));
    }
}

#[test]
fn pieces_of_a_long_text_begin_at_one_place() {
    let text = "the aludel heats é and cools ".repeat(20);
    let rows = [serde_json::json!({ "text": text })];
    let (_folder, teacher, mut stream) = case(&rows, "sequence_length: 16, packing: false", false);
    let live = pairs(&mut stream, &teacher);
    assert!(live.iter().all(|(student, teacher)| teacher.ends_with(student.trim_start_matches('\u{fffd}'))));
    let (_folder, teacher, mut stream) = case(&rows, "sequence_length: 16, packing: false", true);
    let mut teachers = 0;
    while let Some(step) = stream.next_step().unwrap() {
        for part in &step.micro_batches {
            let aligned = part.aligned.as_ref().unwrap();
            for (rows, id) in aligned.teacher.batch.documents.iter().zip(&aligned.teacher.pieces) {
                // Exactly the pieces that a cache has.
                assert!(rows.len() <= 16 && id.start % 16 == 0, "{id} {rows:?}");
                let text = teacher.decode(&aligned.teacher.batch.ids[rows.clone()], true).unwrap();
                assert!(text.len() >= 14 || text.ends_with("cools "), "only the last piece is short: {text}");
                teachers += 1;
            }
        }
    }
    assert!(teachers > 30, "{teachers}");
}

#[test]
fn templates_that_tell_other_turns_are_refused() {
    let rows = [serde_json::json!({"messages": [{"role": "user", "content": "q"}]})];
    let (folder, _, _) = case(&rows, "", false);
    let path = folder.write("b.jsonl", rows[0].to_string());
    std::fs::remove_file(folder.0.path().join("chat_template.jinja")).unwrap();
    let bare = Arc::new(Tokenizer::open(folder.0.path()).unwrap());
    let template = folder.0.path().join("template.jinja");
    let settings = settings(&[&path], &format!("chat_template: \"{}\"", template.display()));
    let without = Data { chat_template: None, ..settings.clone() };
    let encoder = Encoder::new(tokenizer(), &settings).unwrap().with_teacher(bare, &without, None).unwrap();
    let record = Corpus::open(&settings).unwrap().train.read(0).unwrap();
    let fault = encoder.encode(&record).unwrap_err();
    assert_eq!(fault.message, "the teacher's tokenizer has no chat template to write a conversation by");
}
