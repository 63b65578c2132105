//! Cuts an expression into words.
//!
//! In: text. Out: tokens with the bytes that they cover, or the first character that has no meaning.

use std::ops::Range;

use super::fault::Fault;

/// One word of an expression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'t> {
    Number(f64),
    Name(&'t str),
    /// An operator, a bracket, a comma or a semicolon.
    Sign(&'static str),
    End,
}

/// Words of the longest formula that is read, which bounds the memory and the depth of what follows.
const LONGEST: usize = 2000;

/// Longer ones first, as `<` begins `<=`.
const SIGNS: [&str; 18] =
    ["<=", ">=", "==", "!=", "<", ">", "=", "+", "-", "*", "/", "^", "(", ")", "[", "]", ",", ";"];

/// All tokens, the last of which is the end.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token<'_>, Range<usize>)>, Fault> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (token, length) = if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        } else if first.is_ascii_digit() || first == '.' {
            let length = number_length(rest);
            let fault = || Fault::new(at..at + length, format!("`{}` is no number", &rest[..length]));
            let number: f64 = rest[..length].parse().map_err(|_| fault())?;
            (Token::Number(number), length)
        } else if first.is_ascii_alphabetic() || first == '_' {
            let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            (Token::Name(&rest[..length]), length)
        } else if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            (Token::Sign(sign), sign.len())
        } else {
            let shown = first.escape_debug();
            return Err(Fault::new(
                at..at + first.len_utf8(),
                format!("`{shown}` has no meaning in a formula"),
            ));
        };
        tokens.push((token, at..at + length));
        at += length;
        if tokens.len() > LONGEST {
            return Err(Fault::new(0..at, format!("the formula has more than {LONGEST} words")));
        }
    }
    tokens.push((Token::End, text.len()..text.len()));
    Ok(tokens)
}

/// Digits, a point, digits, and an exponent where one follows.
fn number_length(text: &str) -> usize {
    let digits = |from: usize| {
        text[from..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |length| from + length)
    };
    let mut end = digits(0);
    if text[end..].starts_with('.') {
        end = digits(end + 1);
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_signs_are_told_apart() {
        let found: Vec<Token<'_>> =
            tokens("a1<=2.5e-3*.5e").unwrap().into_iter().map(|(token, _)| token).collect();
        let expected = [
            Token::Name("a1"),
            Token::Sign("<="),
            Token::Number(0.0025),
            Token::Sign("*"),
            Token::Number(0.5),
            Token::Name("e"),
            Token::End,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_has_no_meaning_is_pointed_at() {
        assert_eq!(tokens("a + é").unwrap_err().at, 4..6);
        assert_eq!(tokens("1..2").unwrap().len(), 3);
        assert_eq!(tokens("a + .").unwrap_err().at, 4..5);
    }
}
