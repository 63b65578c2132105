//! Opens pages in a browser, for tests of this crate's users: each names this file by its path.
//!
//! The tests need Chromium. Where it is not installed they say so and prove nothing; with `ALUDEL_REQUIRE_CHROMIUM=1` they
//! fail instead, which is how CI runs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The browser; `None`, said aloud, where there is none and none is required.
pub(crate) fn chromium() -> Option<PathBuf> {
    let folders: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let found = found.into_iter().find(|path| path.is_file());
    let is_required = std::env::var_os("ALUDEL_REQUIRE_CHROMIUM").is_some_and(|value| value == "1");
    assert!(found.is_some() || !is_required, "chromium is required and not installed");
    if found.is_none() {
        eprintln!("chromium is not installed: the page was NOT looked at");
    }
    found
}

fn run(chromium: &Path, folder: &Path, arguments: &[&str], page: &Path) -> String {
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .args(arguments)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a script that ends with `report({...})` found on the page, at a window of this size: with `errors`, the `width` of the window, and
/// that of the `content`.
pub(crate) fn probe(chromium: &Path, page: &str, script: &str, size: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let errors = "<script>window.errors = []; onerror = (m) => errors.push(m);
        addEventListener('securitypolicyviolation', (e) => errors.push(e.violatedDirective));</script><style>";
    let page = page.replacen("<style>", errors, 1);
    let page = page.replace("</body>", &format!("<script>{REPORT}{script}</script></body>"));
    std::fs::write(&path, page).unwrap();
    let dom = run(chromium, folder.path(), &[&format!("--window-size={size}"), "--dump-dom"], &path);
    let found = dom.split_once("<pre id=\"probe\">").unwrap().1.split_once("</pre>").unwrap().0;
    serde_json::from_str(&found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")).unwrap()
}

const REPORT: &str = r#"
const report = (found) => {
  const pre = document.createElement("pre");
  pre.id = "probe";
  const content = document.documentElement.scrollWidth;
  pre.textContent = JSON.stringify({ ...found, errors, width: innerWidth, content });
  document.body.append(pre);
};
"#;

/// Leaves the page and pictures of it for people in the folder that `REPORT_PICTURES` names.
pub(crate) fn pictures(name: &str, page: &str, height: usize) {
    let (Some(chromium), Some(folder)) = (chromium(), std::env::var_os("REPORT_PICTURES")) else {
        panic!("needs chromium and REPORT_PICTURES");
    };
    let folder = std::path::absolute(folder).unwrap();
    let path = folder.join(format!("{name}.html"));
    std::fs::write(&path, page).unwrap();
    for (look, width, height, scheme) in
        [("desk", 1280, height, 1), ("dark", 1280, height, 0), ("phone", 390, 2 * height, 1)]
    {
        let picture = format!("--screenshot={}", folder.join(format!("{name}-{look}.png")).display());
        let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
        run(&chromium, &folder, &[&format!("--window-size={width},{height}"), &picture, &scheme], &path);
    }
}
