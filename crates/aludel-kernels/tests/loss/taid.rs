//! Holds the schedule of TAID to what a script that was written from the paper gives over 200 steps.

use aludel_kernels::loss::{Annealing, Taid, TaidSettings, Target};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    settings: TaidSettings,
    total: u64,
    losses: Vec<f64>,
    t: Vec<f64>,
}

#[test]
fn t_follows_the_paper_over_200_steps() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../../../tests/golden/taid/schedule.json")).unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        assert_eq!((case.losses.len(), case.t.len()), (200, 200));
        let mut taid = Taid::new(case.settings);
        let mut annealing = Annealing::Published(taid);
        for (step, (&loss, &expected)) in (1..).zip(case.losses.iter().zip(&case.t)) {
            taid.update(loss, step, case.total);
            assert!(
                (taid.t() - expected).abs() < 1e-14,
                "{}, step {step}: {} {expected}",
                case.name,
                taid.t()
            );
            annealing.update(loss, step, case.total);
            assert_eq!(annealing.target(step, case.total), Target::InterpolatedLogits { t: taid.t() as f32 });
        }
    }
}
