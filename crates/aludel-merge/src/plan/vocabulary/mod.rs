//! Gives the output the tokens that a recipe asks for, and embeddings whose rows are theirs.
//!
//! In: `tokenizer` of a recipe, the models' tokenizers and their tensors' shapes. Out: the output's tokenizer files, the config
//! that is true of them, and for each embedding and head how its rows are put into the order of the output's tokens while they
//! are read. Text is never cut into tokens here.
//!
//! Reading order: `known` (the tokens of a model), `target` (those of the output), `rows` (which row an embedding has for each),
//! `files` and `config` (what is written).

mod config;
mod files;
mod known;
mod rows;
mod target;

pub(super) use config::with_vocabulary;
pub(super) use files::Texts;
pub(super) use known::{AddedToken, Known, ROLES, content};
pub(crate) use rows::is_of_vocabulary;
pub(super) use rows::{TableKind, table_kind};
pub(super) use target::Target;

use std::collections::HashMap;

use aludel_checkpoint::Config;
use aludel_document::{nearest, quoted};
use indexmap::{IndexMap, IndexSet};

use super::SideFiles;
use super::models::{Model, Models};
use crate::problem::{Place, Problem, Problems};
use crate::recipe::{ModelReference, Token, TokenName, TokenRow, Tokenizer, TokenizerSource};
use files::{TOKENIZER, other_forms};
use target::Listed;

/// The output's tokens, and where the models have their rows for them.
#[derive(Debug)]
pub(super) struct Vocabulary {
    place: Place,
    /// The model whose tokenizer the output's comes from.
    source: usize,
    target: Target,
    /// For each model and each id of the output, the id that the model has for the token, or [`NO_TOKEN`].
    ids: IndexMap<usize, Vec<u32>>,
    /// Ids of the output whose rows the recipe settles.
    asked: HashMap<u32, Asked>,
    /// Rows without padding.
    rows: usize,
    /// Rows of the output.
    padded: usize,
}

/// A model without the token.
const NO_TOKEN: u32 = u32::MAX;

/// A row that a recipe asks for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The row of a model, by its id there; `None` for zeros.
    row: Option<(usize, u32)>,
    force: bool,
}

impl Vocabulary {
    /// Settles the tokens. `primary` is the model that gives the config, `taken` are all that anything is taken of. `None` with
    /// no problem: nothing is to be done, as the tokenizer is one and the same file that is not read here.
    pub(super) fn of(
        tokenizer: &Tokenizer,
        primary: usize,
        taken: &IndexSet<usize>,
        models: &Models,
        problems: &mut Problems,
    ) -> Option<Self> {
        let place = tokenizer.source.place.clone();
        let source = problems.take(source_of(tokenizer, primary, models))?;
        let members: IndexSet<usize> = std::iter::once(primary).chain(taken.iter().copied()).collect();
        if is_untouched(tokenizer, &members, models) {
            return None;
        }
        let before = problems.count();
        let read: Vec<Option<Member>> = members
            .iter()
            .map(|&model| problems.take(Member::read(&models.list[model], &place)).flatten())
            .collect();
        if problems.count() > before {
            return None;
        }
        let read: HashMap<usize, Member> =
            members.iter().zip(read).filter_map(|(&model, read)| Some((model, read?))).collect();
        let known: Vec<(usize, &Member)> = members
            .iter()
            .filter_map(|&model| {
                let member =
                    read.get(&model).map_or_else(|| same_as(primary, model, &read, models, &place), Ok);
                Some((model, problems.take(member)?))
            })
            .collect();
        let own =
            problems.take(read.get(&source).ok_or_else(|| no_tokenizer(&models.list[source], &place)))?;
        if known.len() < members.len() {
            return None;
        }
        let others = known.iter().filter(|(model, _)| *model != source).map(|(_, member)| member.listed());
        let target = target_of(tokenizer, own, others.collect(), &models.list[source], &place);
        let target = problems.take(target)?;
        let rows = target.known.rows();
        let multiple = tokenizer.pad_to_multiple_of.unwrap_or(1) as usize;
        let asked = tokenizer.tokens.iter().filter_map(|token| {
            let row = problems.take(asked_row(token, &known, models))?;
            Some((*target.known.ids.get(&token.text.value)?, Asked { row, force: token.force }))
        });
        let asked = asked.collect();
        let ids = known.iter().map(|(model, member)| (*model, member.ids_of(&target.known, rows))).collect();
        let padded = rows.next_multiple_of(multiple);
        (problems.count() == before).then_some(Self { place, source, target, ids, asked, rows, padded })
    }

    /// The side files of the output: those of the model that the tokenizer comes from, with the tokenizer's own.
    pub(super) fn side_files(&self, models: &Models) -> Result<SideFiles, Problem> {
        let model = &models.list[self.source];
        let mut files = model.side_files.clone();
        self.target.put(&mut files).map_err(|error| unreadable(model, &error.to_string(), &self.place))?;
        Ok(files)
    }

    /// The config with the output's number of rows, and with the ids that the model of the tokenizer has for tokens with a role.
    pub(super) fn config(&self, config: Config, primary: usize, models: &Models) -> Config {
        let donor = models.list[self.source].config.as_ref().filter(|_| self.source != primary);
        with_vocabulary(&config, self.padded, donor)
    }
}

/// A model with a tokenizer of its own.
#[derive(Debug)]
pub(super) struct Member {
    pub texts: Texts,
    pub known: Known,
    /// The rows that its tokens may have: those that its config counts, as far as its embedding has them.
    pub size: usize,
    /// The rows of its embedding, with those of no token.
    all: usize,
}

impl Member {
    /// Reads a model's tokenizer; `None` where it has none.
    pub(super) fn read(model: &Model, place: &Place) -> Result<Option<Self>, Problem> {
        let Some(texts) = Texts::of(&model.side_files) else {
            return match other_forms(&model.side_files).first() {
                None => Ok(None),
                Some(form) => {
                    let message = format!(
                        "`{}` has its tokenizer only as `{}`, which is not read here",
                        model.name,
                        form.display()
                    );
                    let hint = "have transformers write a tokenizer.json beside it: `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`";
                    Err(Problem::at(place.clone(), message).with_hint(hint))
                }
            };
        };
        let known = Known::read(&texts.tokenizer, texts.config.as_ref())
            .map_err(|error| unreadable(model, &error.to_string(), place))?;
        let embedded = model
            .tensors
            .iter()
            .filter(|(name, facts)| is_of_vocabulary(name) && facts.shape.len() == 2 && facts.shape[1] > 0);
        // Only what is stored bounds what a damaged config may claim.
        let all = embedded.map(|(_, facts)| facts.shape[0]).max().unwrap_or(known.ids.len());
        let counted = model.config.as_ref().and_then(Config::vocabulary);
        let size = counted.unwrap_or(known.ids.len()).min(all);
        Ok(Some(Self { texts, known, size, all }))
    }

    /// The tokenizer of an output that has this model's.
    pub(super) fn target(&self, model: &Model, place: &Place) -> Result<Target, Problem> {
        Target::of(self.texts.clone(), self.listed()).map_err(|error| unreadable(model, &error, place))
    }

    fn listed(&self) -> Listed<'_> {
        Listed { known: &self.known, size: self.size }
    }

    /// The id that it has for each of the output's ids.
    fn ids_of(&self, target: &Known, rows: usize) -> Vec<u32> {
        let mut ids = vec![NO_TOKEN; rows];
        for (token, &id) in &target.ids {
            ids[id as usize] = self.id(token).unwrap_or(NO_TOKEN);
        }
        ids
    }

    /// The id of a token that it has a row for.
    fn id(&self, token: &str) -> Option<u32> {
        self.known.ids.get(token).copied().filter(|&id| (id as usize) < self.size)
    }
}

fn source_of(tokenizer: &Tokenizer, primary: usize, models: &Models) -> Result<usize, Problem> {
    match &tokenizer.source.value {
        TokenizerSource::Base | TokenizerSource::Union => Ok(primary),
        TokenizerSource::Model(model) => {
            position(model, &tokenizer.source.place, models, ", `base` or `union`")
        }
    }
}

fn position(
    model: &ModelReference,
    place: &Place,
    models: &Models,
    otherwise: &str,
) -> Result<usize, Problem> {
    models.position(model).ok_or_else(|| {
        let problem = Problem::at(place.clone(), format!("`{}` is none of the merge's models", model.text()));
        match nearest(model.text(), models.list.iter().map(|model| model.name.as_str())) {
            Some(meant) => problem.with_hint(format!("did you mean `{meant}`?")),
            None => problem.with_hint(format!("name one of `models`{otherwise}")),
        }
    })
}

/// Whether all models have the same tokenizer, in a form that is not read here, and nothing else is asked for.
fn is_untouched(tokenizer: &Tokenizer, members: &IndexSet<usize>, models: &Models) -> bool {
    let files = |model: usize| {
        let side = &models.list[model].side_files;
        let forms = other_forms(side).into_iter();
        let read = |name: &std::path::PathBuf| Some((name.clone(), side.read(name)?));
        (Texts::of(side).is_none()).then(|| forms.map(read).collect::<Option<Vec<_>>>()).flatten()
    };
    let mut all = members.iter().map(|&model| files(model));
    let first = all.next().flatten().filter(|files| !files.is_empty());
    let asks_more = !tokenizer.tokens.is_empty() || tokenizer.pad_to_multiple_of.is_some();
    !asks_more && first.is_some_and(|first| all.all(|other| other.as_ref() == Some(&first)))
}

/// The tokenizer of a model that has none: that of the model which gives the config, where it has as many tokens.
fn same_as<'m>(
    primary: usize,
    model: usize,
    read: &'m HashMap<usize, Member>,
    models: &Models,
    place: &Place,
) -> Result<&'m Member, Problem> {
    let counted = |model: usize| models.list[model].config.as_ref().and_then(Config::vocabulary);
    let same = read.get(&primary).filter(|_| counted(primary) == counted(model));
    same.ok_or_else(|| no_tokenizer(&models.list[model], place))
}

pub(super) fn no_tokenizer(model: &Model, place: &Place) -> Problem {
    let message =
        format!("`{}` has no {TOKENIZER}, so that nothing tells which rows its tokens have", model.name);
    Problem::at(place.clone(), message).with_hint("put its tokenizer into its folder, or leave the key out")
}

fn unreadable(model: &Model, error: &str, place: &Place) -> Problem {
    Problem::at(place.clone(), format!("{TOKENIZER} of `{}` cannot be read: {error}", model.name))
        .with_hint("copy it anew from where the model comes from")
}

fn target_of(
    tokenizer: &Tokenizer,
    own: &Member,
    others: Vec<Listed<'_>>,
    model: &Model,
    place: &Place,
) -> Result<Target, Problem> {
    let mut target = own.target(model, place)?;
    let (could_grow, before) = (!target.known.has_gap(), target.known.ids.len());
    if tokenizer.source.value == TokenizerSource::Union {
        target.unite(&others);
    }
    target.add_named(&tokenizer.tokens);
    if target.known.ids.len() > before && !could_grow {
        let message = format!("the tokenizer of `{}` leaves ids out, so that none can be added", model.name);
        let hint = "take the tokenizer of another model, as its `source`";
        return Err(Problem::at(place.clone(), message).with_hint(hint));
    }
    Ok(target)
}

/// The row that a recipe asks for; `None` for zeros.
fn asked_row(
    token: &Token,
    known: &[(usize, &Member)],
    models: &Models,
) -> Result<Option<(usize, u32)>, Problem> {
    let TokenRow::Of { model, token: name } = &token.row.value else { return Ok(None) };
    let place = &token.row.place;
    let position = position(model, place, models, "")?;
    let member = known.iter().find(|(model, _)| *model == position).map(|(_, member)| *member);
    let Some(member) = member else {
        let message = format!("nothing is taken of `{}`", model.text());
        return Err(Problem::at(place.clone(), message).with_hint("name one of the models that are merged"));
    };
    let text = match name {
        Some(TokenName::Id(id)) if (*id as usize) < member.all => return Ok(Some((position, *id))),
        Some(TokenName::Id(id)) => {
            let message = format!("`{}` has no row {id}", model.text());
            let hint = format!("its rows are 0 to {}", member.all.saturating_sub(1));
            return Err(Problem::at(place.clone(), message).with_hint(hint));
        }
        Some(TokenName::Text(text)) => text,
        None => &token.text.value,
    };
    member.id(text).map(|id| Some((position, id))).ok_or_else(|| {
        let message = format!("`{}` has no token {}", model.text(), quoted(text));
        let problem = Problem::at(place.clone(), message);
        let near = nearest(text, member.known.added.iter().map(|token| token.content.as_str()));
        match near {
            Some(near) => problem.with_hint(format!("did you mean {}?", quoted(near))),
            None => problem.with_hint(
                "tokens are written as in the `vocab` of its tokenizer.json; or give a `token_id`",
            ),
        }
    })
}
