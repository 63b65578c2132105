//! Parses an expression into a tree whose every part knows its bytes.
//!
//! In: text. Out: a [`Script`], or the first fault. What names mean, and how many values an expression has, is decided when
//! it is built for a tensor.
//!
//! ```text
//! script  := (name "=" choice ";")* choice [";"]
//! choice  := also ("or" also)*          also := not ("and" not)*      not := "not" not | compared
//! compared := sum [("<" | "<=" | ">" | ">=" | "==" | "!=") sum]
//! sum     := product (("+" | "-") product)*       product := signed (("*" | "/") signed)*
//! signed  := "-" signed | power         power := primary ["^" signed]
//! primary := number | name | name "[" number "]" | name "(" choice ("," choice)* ")" | "(" choice ")"
//! ```

use std::ops::Range;

use super::fault::Fault;
use super::lexer::{Token, tokens};

/// A whole formula: named values, and the one that is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Script<'t> {
    pub definitions: Vec<Definition<'t>>,
    pub output: Node<'t>,
}

/// A named value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Definition<'t> {
    pub name: &'t str,
    pub at: Range<usize>,
    pub value: Node<'t>,
}

/// A part of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node<'t> {
    pub at: Range<usize>,
    pub kind: NodeKind<'t>,
}

/// What a part is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NodeKind<'t> {
    Number(f64),
    Name(&'t str),
    Indexed(&'t str, usize),
    Call(&'t str, Vec<Node<'t>>),
    Negated(Box<Node<'t>>),
    Not(Box<Node<'t>>),
    /// An operator between two values.
    Between(&'static str, Box<Node<'t>>, Box<Node<'t>>),
}

/// Brackets and signs within one another; more is no formula that anyone wrote.
const DEEPEST: usize = 64;

/// Words that are no names.
const RESERVED: [&str; 3] = ["and", "or", "not"];

pub(super) fn parse(text: &str) -> Result<Script<'_>, Fault> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let mut definitions = Vec::new();
    loop {
        if let (Token::Name(name), Token::Sign("=")) = (parser.token(), parser.second())
            && !RESERVED.contains(&name)
        {
            let at = parser.next();
            parser.next();
            let value = parser.choice()?;
            parser.expect(";", "`;` between a named value and what follows")?;
            definitions.push(Definition { name, at, value });
            continue;
        }
        let output = parser.choice()?;
        parser.accept(";");
        if parser.token() == Token::End {
            return Ok(Script { definitions, output });
        }
        return Err(parser.unexpected("an operator or the end"));
    }
}

struct Parser<'t> {
    tokens: Vec<(Token<'t>, Range<usize>)>,
    at: usize,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn token(&self) -> Token<'t> {
        self.tokens[self.at].0
    }

    fn second(&self) -> Token<'t> {
        self.tokens.get(self.at + 1).map_or(Token::End, |token| token.0)
    }

    fn range(&self) -> Range<usize> {
        self.tokens[self.at].1.clone()
    }

    /// Passes a token; its bytes. The end is never passed.
    fn next(&mut self) -> Range<usize> {
        let range = self.range();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        range
    }

    fn accept(&mut self, sign: &str) -> bool {
        let is_here = matches!(self.token(), Token::Sign(found) if found == sign);
        if is_here {
            self.next();
        }
        is_here
    }

    fn accept_any(&mut self, signs: &[&'static str]) -> Option<&'static str> {
        signs.iter().copied().find(|sign| self.accept(sign))
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let is_here = matches!(self.token(), Token::Name(found) if found == word);
        if is_here {
            self.next();
        }
        is_here
    }

    fn expect(&mut self, sign: &str, expected: &str) -> Result<Range<usize>, Fault> {
        let range = self.range();
        if self.accept(sign) { Ok(range) } else { Err(self.unexpected(expected)) }
    }

    fn unexpected(&self, expected: &str) -> Fault {
        let found = match self.token() {
            Token::Number(number) => format!("`{number}`"),
            Token::Name(name) => format!("`{name}`"),
            Token::Sign(sign) => format!("`{sign}`"),
            Token::End => "the end of the formula".to_owned(),
        };
        Fault::new(self.range(), format!("expected {expected}, found {found}"))
    }

    fn choice(&mut self) -> Result<Node<'t>, Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Fault::new(self.range(), format!("nested deeper than {DEEPEST} levels"))
                .with_hint("name parts of it: `part = ...; ...`"));
        }
        let mut left = self.also()?;
        while self.accept_word("or") {
            left = between("or", left, self.also()?);
        }
        self.depth -= 1;
        Ok(left)
    }

    fn also(&mut self) -> Result<Node<'t>, Fault> {
        let mut left = self.negation()?;
        while self.accept_word("and") {
            left = between("and", left, self.negation()?);
        }
        Ok(left)
    }

    fn negation(&mut self) -> Result<Node<'t>, Fault> {
        let start = self.range().start;
        if self.accept_word("not") {
            let operand = self.deeper(Self::negation)?;
            return Ok(Node { at: start..operand.at.end, kind: NodeKind::Not(Box::new(operand)) });
        }
        self.compared()
    }

    fn compared(&mut self) -> Result<Node<'t>, Fault> {
        let left = self.sum()?;
        match self.accept_any(&["<=", ">=", "==", "!=", "<", ">"]) {
            Some(sign) => Ok(between(sign, left, self.sum()?)),
            None => Ok(left),
        }
    }

    fn sum(&mut self) -> Result<Node<'t>, Fault> {
        let mut left = self.product()?;
        while let Some(sign) = self.accept_any(&["+", "-"]) {
            left = between(sign, left, self.product()?);
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Node<'t>, Fault> {
        let mut left = self.signed()?;
        while let Some(sign) = self.accept_any(&["*", "/"]) {
            left = between(sign, left, self.signed()?);
        }
        Ok(left)
    }

    fn signed(&mut self) -> Result<Node<'t>, Fault> {
        let start = self.range().start;
        if self.accept("-") {
            let operand = self.deeper(Self::signed)?;
            return Ok(Node { at: start..operand.at.end, kind: NodeKind::Negated(Box::new(operand)) });
        }
        let left = self.primary()?;
        if self.accept("^") {
            let right = self.deeper(Self::signed)?;
            return Ok(between("^", left, right));
        }
        Ok(left)
    }

    fn deeper(&mut self, parse: impl Fn(&mut Self) -> Result<Node<'t>, Fault>) -> Result<Node<'t>, Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Fault::new(self.range(), format!("nested deeper than {DEEPEST} levels")));
        }
        let node = parse(self)?;
        self.depth -= 1;
        Ok(node)
    }

    fn primary(&mut self) -> Result<Node<'t>, Fault> {
        match self.token() {
            Token::Number(number) => Ok(Node { at: self.next(), kind: NodeKind::Number(number) }),
            Token::Name(name) if !RESERVED.contains(&name) => {
                let at = self.next();
                self.after_name(name, at)
            }
            Token::Sign("(") => {
                self.next();
                let inner = self.choice()?;
                self.expect(")", "`)`")?;
                Ok(inner)
            }
            _ => Err(self.unexpected("a value")),
        }
    }

    fn after_name(&mut self, name: &'t str, at: Range<usize>) -> Result<Node<'t>, Fault> {
        if self.accept("[") {
            let index = match self.token() {
                Token::Number(number) if number.fract() == 0.0 && number < 65_536.0 => number as usize,
                _ => return Err(self.unexpected("the position of a model, counted from 0")),
            };
            self.next();
            let end = self.expect("]", "`]`")?.end;
            return Ok(Node { at: at.start..end, kind: NodeKind::Indexed(name, index) });
        }
        if !self.accept("(") {
            return Ok(Node { at, kind: NodeKind::Name(name) });
        }
        let mut arguments = Vec::new();
        if !matches!(self.token(), Token::Sign(")")) {
            arguments.push(self.choice()?);
            while self.accept(",") {
                arguments.push(self.choice()?);
            }
        }
        let end = self.expect(")", "`,` or `)`")?.end;
        Ok(Node { at: at.start..end, kind: NodeKind::Call(name, arguments) })
    }
}

fn between<'t>(sign: &'static str, left: Node<'t>, right: Node<'t>) -> Node<'t> {
    let at = left.at.start..right.at.end;
    Node { at, kind: NodeKind::Between(sign, Box::new(left), Box::new(right)) }
}

impl<'t> Script<'t> {
    /// Every name that stands for a value: those of functions are not among them.
    pub(super) fn names(&self) -> Vec<&'t str> {
        let mut names = Vec::new();
        self.definitions.iter().for_each(|definition| definition.value.collect_names(&mut names));
        self.output.collect_names(&mut names);
        names
    }
}

impl<'t> Node<'t> {
    fn collect_names(&self, names: &mut Vec<&'t str>) {
        match &self.kind {
            NodeKind::Number(_) => {}
            NodeKind::Name(name) | NodeKind::Indexed(name, _) => names.push(name),
            NodeKind::Call(_, arguments) => arguments.iter().for_each(|part| part.collect_names(names)),
            NodeKind::Negated(operand) | NodeKind::Not(operand) => operand.collect_names(names),
            NodeKind::Between(_, left, right) => {
                left.collect_names(names);
                right.collect_names(names);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree with all brackets written out.
    fn shown(node: &Node<'_>) -> String {
        match &node.kind {
            NodeKind::Number(number) => number.to_string(),
            NodeKind::Name(name) => (*name).to_owned(),
            NodeKind::Indexed(name, index) => format!("{name}[{index}]"),
            NodeKind::Call(name, arguments) => {
                format!("{name}({})", arguments.iter().map(shown).collect::<Vec<_>>().join(" "))
            }
            NodeKind::Negated(operand) => format!("(-{})", shown(operand)),
            NodeKind::Not(operand) => format!("(not {})", shown(operand)),
            NodeKind::Between(sign, left, right) => format!("({} {sign} {})", shown(left), shown(right)),
        }
    }

    #[test]
    fn operators_bind_as_in_mathematics() {
        for (text, expected) in [
            ("a + b * c - d", "((a + (b * c)) - d)"),
            ("-a ^ 2 * b", "((-(a ^ 2)) * b)"),
            ("a ^ -2", "(a ^ (-2))"),
            ("a / b / c", "((a / b) / c)"),
            ("a < b + 1 and not c or d", "(((a < (b + 1)) and (not c)) or d)"),
            ("f(a, b[3]) * (a + 1)", "(f(a b[3]) * (a + 1))"),
        ] {
            assert_eq!(shown(&parse(text).unwrap().output), expected, "{text}");
        }
    }

    #[test]
    fn named_values_come_before_the_output() {
        let script = parse("d = model[0] - base;\n base + d * top(d, 5);").unwrap();
        assert_eq!((script.definitions.len(), script.definitions[0].name), (1, "d"));
        assert_eq!(script.names(), ["model", "base", "base", "d", "d"]);
    }

    #[test]
    fn faults_point_at_their_bytes() {
        for (text, at, message) in [
            ("", 0..0, "expected a value, found the end of the formula"),
            ("a + ", 4..4, "expected a value, found the end of the formula"),
            ("a + * b", 4..5, "expected a value, found `*`"),
            ("(a + b", 6..6, "expected `)`, found the end of the formula"),
            ("f(a b)", 4..5, "expected `,` or `)`, found `b`"),
            ("model[x]", 6..7, "expected the position of a model, counted from 0, found `x`"),
            ("model[1.5]", 6..9, "expected the position of a model, counted from 0, found `1.5`"),
            ("a b", 2..3, "expected an operator or the end, found `b`"),
            (
                "d = a",
                5..5,
                "expected `;` between a named value and what follows, found the end of the formula",
            ),
            ("and", 0..3, "expected a value, found `and`"),
            ("a < b < c", 6..7, "expected an operator or the end, found `<`"),
        ] {
            let fault = parse(text).unwrap_err();
            assert_eq!((fault.at, fault.message.as_str()), (at, message), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        for text in ["(".repeat(999), "-".repeat(999), "not ".repeat(999), "1^".repeat(999)] {
            assert!(parse(&text).unwrap_err().message.starts_with("nested deeper"), "{}", &text[..8]);
        }
        assert!(parse(&format!("a{}", " + a".repeat(900))).is_ok());
        assert!(parse(&format!("a{}", " + a".repeat(900_000))).unwrap_err().message.contains("words"));
    }
}
