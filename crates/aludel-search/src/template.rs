//! A recipe whose numbers can be exchanged, the rest of its text staying as it is.
//!
//! In: YAML and variables. Out: texts with other numbers at their places, or what is wrong with a place: every number of the recipe may
//! vary that is written as one, also in a list.

use std::ops::Range;

use aludel_document::{Content, Cursor, Node, Problem, Problems, Scalar, nearest, quoted, tree};

use crate::variable::Variable;

/// A recipe and the places of its variables.
#[derive(Clone, Debug)]
pub struct Template {
    text: String,
    variables: Vec<Variable>,
    /// Bytes that are exchanged, in order, each with the position of its variable.
    spots: Vec<(Range<usize>, usize)>,
    /// What the recipe has at the first place of each variable.
    given: Vec<f64>,
}

/// A number of a recipe.
struct Number {
    path: String,
    at: (usize, usize),
    /// As it is written; `None` where it cannot be exchanged.
    text: Option<String>,
    value: f64,
}

impl Template {
    /// Finds the places of variables in a recipe.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn new(text: &str, variables: Vec<Variable>) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let numbers = numbers(text, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let (mut spots, mut given) = (Vec::new(), Vec::new());
        for (at, variable) in variables.iter().enumerate() {
            for (number, place) in variable.places.iter().enumerate() {
                let Some((bytes, value)) = problems.take(spot(text, place, &numbers)) else { continue };
                if number == 0 {
                    if !(variable.low..=variable.high).contains(&value) {
                        let message = format!("the recipe has {value} there, which is not in the range");
                        let problem = Problem::general(format!("{variable}: {message}"));
                        problems.push(problem.with_hint("the search begins with the recipe as it is"));
                    }
                    given.push(value);
                } else if given.last().is_some_and(|&first| first != value) {
                    let message = format!("{variable}: the recipe has different numbers at these places");
                    problems
                        .push(Problem::general(message).with_hint("give them one, or let them vary apart"));
                }
                spots.push((bytes, at));
            }
        }
        spots.sort_by_key(|(bytes, _)| bytes.start);
        for pair in spots.windows(2) {
            if pair[0].0.start == pair[1].0.start {
                let variable = &variables[pair[1].1];
                problems.push(Problem::general(format!("{variable}: a place varies twice")));
            }
        }
        if variables.is_empty() {
            problems.push(
                Problem::general("nothing varies")
                    .with_hint("name numbers of the recipe, as in --vary models[0].parameters.weight=0..1"),
            );
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self { text: text.to_owned(), variables, spots, given })
    }

    /// The recipe as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What varies.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// What the recipe has where something varies.
    pub fn given(&self) -> &[f64] {
        &self.given
    }

    /// The recipe with other numbers, one for each variable; one that is missing stays as it is.
    pub fn with(&self, values: &[f64]) -> String {
        let mut text = String::with_capacity(self.text.len() + 16 * self.spots.len());
        let mut at = 0;
        for (bytes, variable) in &self.spots {
            let Some(value) = values.get(*variable) else { continue };
            text.push_str(&self.text[at..bytes.start]);
            text.push_str(&value.to_string());
            at = bytes.end;
        }
        text + &self.text[at..]
    }
}

/// Where a number stands that a place names, and which it is.
fn spot(text: &str, place: &str, numbers: &[Number]) -> Result<(Range<usize>, f64), Problem> {
    let mut found = numbers.iter().filter(|number| number.path == place);
    let Some(number) = found.next() else {
        let paths = numbers.iter().map(|number| number.path.as_str());
        let hint = match nearest(place, paths.clone()) {
            Some(near) => format!("did you mean {}?", quoted(near)),
            None => format!("its numbers are {}", paths.collect::<Vec<_>>().join(", ")),
        };
        return Err(
            Problem::general(format!("the recipe has no number at {}", quoted(place))).with_hint(hint)
        );
    };
    if found.next().is_some() {
        let message = format!("several documents of the recipe have a number at {}", quoted(place));
        return Err(Problem::general(message).with_hint("search in a recipe of one document"));
    }
    let start = offset(text, number.at);
    let written = number.text.as_deref().filter(|written| text[start..].starts_with(written));
    let Some(written) = written else {
        let message = format!("the number at {} is not written as one", quoted(place));
        return Err(Problem::general(message).with_hint("write it without quotes, tags and aliases"));
    };
    Ok((start..start + written.len(), number.value))
}

/// The byte at a line and column, both from 1; the end of the text where there is none.
fn offset(text: &str, (line, column): (usize, usize)) -> usize {
    let mut lines = text.split_inclusive('\n');
    let start: usize = lines.clone().take(line - 1).map(str::len).sum();
    let within = lines.nth(line - 1).unwrap_or_default();
    start + within.char_indices().nth(column - 1).map_or(within.len(), |(at, _)| at)
}

/// All numbers of a recipe.
fn numbers(text: &str, problems: &mut Problems) -> Vec<Number> {
    let mut numbers = Vec::new();
    for document in &tree::read_all(text, "recipe", problems) {
        collect(&Cursor::root(document), &mut numbers);
    }
    numbers
}

fn collect(cursor: &Cursor<'_>, numbers: &mut Vec<Number>) {
    let Node { at, content } = cursor.node;
    match content {
        Content::Mapping(_) => {
            cursor.entries().into_iter().flatten().for_each(|(_, _, value)| collect(&value, numbers));
        }
        Content::Sequence(_) => cursor.items().into_iter().flatten().for_each(|item| collect(&item, numbers)),
        Content::Plain(text) | Content::Quoted(text) => {
            let Ok(Scalar::Number(value)) = cursor.scalar() else { return };
            let text = matches!(content, Content::Plain(_)).then(|| text.clone());
            numbers.push(Number { path: cursor.place().path, at: *at, text, value });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "# ä\nmerge_method: ties\nmodels:\n  - model: a # 0.5\n    parameters: {weight: 0.5, density: [0.3, 7e-1]}\n  - {model: b, parameters: {weight: 0.5}}\nparameters:\n  lambda: \"1\"\n";

    fn template(variables: &[&str]) -> Result<Template, Problems> {
        Template::new(RECIPE, variables.iter().map(|variable| variable.parse().unwrap()).collect())
    }

    #[test]
    fn numbers_are_exchanged_and_nothing_else() {
        let template = template(&[
            "models[1].parameters.weight,models[0].parameters.weight=0..1",
            "models[0].parameters.density[1]=0..1",
        ]);
        let template = template.unwrap();
        assert_eq!(template.given(), [0.5, 0.7]);
        let expected = RECIPE.replace("weight: 0.5", "weight: 0.25").replace("7e-1", "1");
        assert_eq!(template.with(&[0.25, 1.0]), expected);
        assert_eq!(template.with(&[0.5, 0.7]), RECIPE.replace("7e-1", "0.7"));
        assert_eq!(template.with(&[0.25]), RECIPE.replace("weight: 0.5", "weight: 0.25"));
    }

    #[test]
    fn places_that_are_none_are_told() {
        let told = |variables: &[&str]| {
            let problems = template(variables).unwrap_err();
            let problem = problems.iter().next().unwrap();
            format!("{} ({})", problem.message, problem.hint.as_deref().unwrap_or_default())
        };
        assert_eq!(
            told(&["models[0].parameters.wieght=0..1"]),
            "the recipe has no number at `models[0].parameters.wieght` (did you mean `models[0].parameters.weight`?)"
        );
        assert_eq!(
            told(&["parameters.lambda=0..2"]),
            "the number at `parameters.lambda` is not written as one (write it without quotes, tags and aliases)"
        );
        assert!(told(&["models[0].parameters.weight=0..0.4"]).contains("the recipe has 0.5 there"));
        let apart = "models[0].parameters.weight,models[0].parameters.density[0]=0..1";
        assert!(told(&[apart]).contains("different numbers at these places"));
        let twice = ["models[0].parameters.weight=0..1", "models[0].parameters.weight=0..2"];
        assert!(told(&twice).contains("a place varies twice"));
        assert!(told(&[]).starts_with("nothing varies"));
        assert!(told(&["seed=0..1"]).contains("its numbers are models[0].parameters.weight, "));
    }
}
