//! Writes the parts of a model card that texts from elsewhere go into, so that nothing in them breaks out.

/// A YAML string that nothing in it can end early.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The text of a table's cell in Markdown.
pub fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// A block of code in Markdown, between fences longer than any in the text.
pub fn block(language: &str, text: &str) -> String {
    let fence = fence_for(text);
    format!("{fence}{language}\n{}\n{fence}", text.trim_end())
}

fn fence_for(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(longest.max(2) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_recipe_or_a_name_breaks_out_of_the_card() {
        assert_eq!(block("yaml", "a: b # ```` c\n\n"), "`````yaml\na: b # ```` c\n`````");
        assert_eq!(block("", "plain"), "```\nplain\n```");
        assert_eq!(quoted("a\"\nb"), r#""a\"\nb""#);
        assert_eq!(cell("a|b\nc"), "a\\|b c");
    }
}
