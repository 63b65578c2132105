//! Renders the record of a search as one page of HTML.
//!
//! In: what was searched, and the evaluations so far. Out: a page with the score of every candidate, the best so far, and how each number
//! moved. It is readable without scripts.

use std::fmt::Write;

use aludel_document::page::figure::{self, Curve, Ink, Point};
use aludel_document::page::{self, escape, number};

use crate::log::Evaluation;
use crate::search::best;
use crate::template::Template;

/// What the page says besides the record.
pub struct Facts<'a> {
    /// The heading.
    pub title: &'a str,
    /// What a score is: "cross-entropy, nats a token".
    pub measure: &'a str,
    /// What is known of models and data: names and values.
    pub facts: &'a [(String, String)],
}

/// The page.
pub fn render(facts: &Facts<'_>, template: &Template, evaluations: &[Evaluation]) -> String {
    let mut page = page::begin(facts.title, figure::STYLES);
    let _ = write!(page, "<p class=\"under\">{} candidates scored</p>", evaluations.len());
    let (given, best) = (evaluations.first(), best(evaluations));
    page.push_str("<div class=\"tiles\">");
    let mut tile = |name: &str, score: Option<f64>| {
        if let Some(score) = score {
            let _ = write!(page, "<div><span>{}</span><b>{}</b></div>", escape(name), number(score));
        }
    };
    tile("the best", best.and_then(|best| best.score));
    tile("the recipe as it was", given.and_then(|given| given.score));
    tile("seconds a candidate", mean(evaluations.iter().map(|evaluation| evaluation.seconds)));
    page.push_str("</div>");
    page.push_str(&numbers(template, best));
    page.push_str("<h2>Candidates</h2><div class=\"figures\">");
    let scores = |evaluation: &Evaluation| evaluation.score;
    page.push_str(&figure(("Score", facts.measure), evaluations, scores));
    for (at, variable) in template.variables().iter().enumerate() {
        let value = |evaluation: &Evaluation| evaluation.values.get(at)?.parse().ok();
        page.push_str(&figure((&variable.places.join(", "), ""), evaluations, value));
    }
    page.push_str("</div><h2>Models and data</h2><div class=\"table\"><table class=\"facts\"><tbody>");
    for (name, value) in facts.facts {
        let _ = write!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    }
    page.push_str("</tbody></table></div>");
    if let Some(best) = best {
        let recipe = escape(template.with(&parsed(best)).trim_end());
        let _ = write!(page, "<h2>The best recipe</h2><div class=\"table\"><pre>{recipe}</pre></div>");
    }
    page::end(&mut page, figure::SCRIPT);
    page
}

/// The numbers of a candidate.
pub fn parsed(evaluation: &Evaluation) -> Vec<f64> {
    evaluation.values.iter().filter_map(|value| value.parse().ok()).collect()
}

fn numbers(template: &Template, best: Option<&Evaluation>) -> String {
    let mut table = String::from(
        "<h2>Numbers</h2><div class=\"table\"><table><thead><tr><th>place</th><th>range</th><th>as given</th><th>best</th></tr></thead><tbody>",
    );
    for (at, (variable, given)) in template.variables().iter().zip(template.given()).enumerate() {
        let best = best.and_then(|best| best.values.get(at)).map_or("", String::as_str);
        let place = escape(&variable.places.join(", "));
        let (low, high) = (variable.low, variable.high);
        let _ = write!(
            table,
            "<tr><td>{place}</td><td>{low} to {high}</td><td>{given}</td><td>{}</td></tr>",
            escape(best)
        );
    }
    table + "</tbody></table></div>"
}

/// A figure of something about all candidates, and of the best so far.
fn figure(
    (title, unit): (&str, &str),
    evaluations: &[Evaluation],
    value: impl Fn(&Evaluation) -> Option<f64>,
) -> String {
    let point = |at: usize, evaluation: &Evaluation| Some(Point::single(at as u64 + 1, value(evaluation)?));
    let all = evaluations.iter().enumerate();
    let candidates: Vec<Point> = all.clone().filter_map(|(at, evaluation)| point(at, evaluation)).collect();
    let bests: Vec<Point> = all.filter_map(|(at, _)| point(at, best(&evaluations[..=at])?)).collect();
    if candidates.is_empty() || bests.is_empty() {
        return String::new();
    }
    let curves = [
        Curve { name: "candidate", ink: Ink::First, points: &candidates },
        Curve { name: "best so far", ink: Ink::Second, points: &bests },
    ];
    figure::draw(title, unit, "candidate", &curves)
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_best_and_what_it_was_found_by() {
        let variables = vec!["parameters.t<script>=0..1".parse().unwrap()];
        assert!(Template::new("parameters: {t: 0.5}\n", variables).is_err());
        let template =
            Template::new("parameters: {t: 0.5} # </pre>\n", vec!["parameters.t=0..1".parse().unwrap()])
                .unwrap();
        let evaluation = |evaluation, value: &str, score| Evaluation {
            evaluation,
            values: vec![value.into()],
            score,
            seconds: 0.5,
        };
        let record =
            [evaluation(1, "0.5", Some(3.0)), evaluation(2, "0.25", Some(2.5)), evaluation(3, "0.1", None)];
        let fact = ("data".to_owned(), "<b>held-out.txt".to_owned());
        let facts = Facts { title: "Search", measure: "nats a token", facts: &[fact] };
        let page = render(&facts, &template, &record);
        for part in [
            "<span>the best</span><b>2.5</b>",
            "<span>the recipe as it was</span><b>3</b>",
            "<td>parameters.t</td><td>0 to 1</td><td>0.5</td><td>0.25</td>",
            "parameters: {t: 0.25} # &lt;/pre&gt;",
            "&lt;b&gt;held-out.txt",
            "best so far ends at 2.5",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(render(&facts, &template, &[]).contains("0 candidates scored"));
    }
}
