use aludel_merge::{execute::*, plan::*, recipe::Recipe};
use std::sync::atomic::AtomicBool;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let recipe = Recipe::parse(&std::fs::read_to_string(&a[1]).unwrap()).unwrap_or_else(|e| { eprintln!("{e}"); std::process::exit(3) });
    let mut o = PlanOptions { target: Some(a[2].clone().into()), ..Default::default() };
    if let Some(t) = a.get(3) { o.threads = t.parse().unwrap(); }
    if let Some(t) = a.get(4) { o.tile = Some(t.parse().unwrap()); }
    let plan = Plan::new(&recipe, &o).unwrap_or_else(|e| { eprintln!("{e}"); std::process::exit(3) });
    if std::env::var("V").is_ok() { println!("{plan:#}"); }
    let cancel = AtomicBool::new(false);
    let x = ExecuteOptions { replace: true, digests: aludel_checkpoint::DigestCache::user(), cancel: &cancel, on_progress: &|_| {}, sync: std::env::var("SYNC").is_ok() };
    match execute(&plan, a[2].as_ref(), &x) { Ok(r) => println!("{}", serde_json::to_string_pretty(&r).unwrap()), Err(e) => { eprintln!("{e}"); std::process::exit(1) } }
}
