//! Holds what goes into linear layers against what hooks in torch have seen.

use aludel_kernels::nn::{Cpu, Device};
use aludel_model::{Batch, Decoder, Grams, Use};

use crate::support::{DOCUMENTS, Tensors, batch, copy_of, cpu, differ, folder};

/// Of fused layers, of norms before, after and around, of a mixture, with a tied head and without.
const CASES: [&str; 5] = ["llama-biases", "phi3", "gemma2", "olmo2", "mixtral"];

fn open(case: &str) -> Decoder<Cpu> {
    Decoder::open(&copy_of(case).0, cpu(2), Use::Frozen).unwrap()
}

fn values(decoder: &Decoder<Cpu>, grams: &Grams<Cpu>, site: usize) -> Vec<f32> {
    let device = &**decoder.device();
    let sum = grams.of(site).unwrap();
    device.read(sum, 0..device.len(sum)).unwrap()
}

#[test]
fn sums_agree_with_hooks_in_torch() {
    for case in CASES {
        let decoder = open(case);
        let expected = Tensors::open(&folder().join(case).join("grams.safetensors"));
        let sites = decoder.sites();
        let mut grams = decoder.grams(0..sites.len()).unwrap();
        // Documents add up, whether they are in one batch or not.
        for ids in DOCUMENTS {
            decoder.add_grams(&Batch::pack([ids]), &mut grams).unwrap();
        }
        let mut compared = 0;
        for (number, site) in sites.iter().enumerate() {
            for tensor in &site.tensors {
                let got = values(&decoder, &grams, number);
                assert_eq!(got.len(), site.width * site.width);
                differ(&got, &expected.values(tensor), 1e-4)
                    .unwrap_or_else(|e| panic!("{case}: {tensor}: {e}"));
                compared += 1;
            }
        }
        assert_eq!(compared, expected.names().len(), "{case}: inputs that were not collected");
    }
}

#[test]
fn a_part_of_the_sites_is_the_same_as_in_the_whole() {
    for case in CASES {
        let decoder = open(case);
        let count = decoder.sites().len();
        let mut whole = decoder.grams(0..count).unwrap();
        decoder.add_grams(&batch(), &mut whole).unwrap();
        for part in [0..1, 1..4, 2..count, count / 2..count / 2 + 3, count - 1..count] {
            let mut grams = decoder.grams(part.clone()).unwrap();
            decoder.add_grams(&batch(), &mut grams).unwrap();
            for site in part.clone() {
                let (got, expected) = (values(&decoder, &grams, site), values(&decoder, &whole, site));
                assert_eq!(got, expected, "{case}: site {site} of {part:?}");
            }
            assert!(
                grams.of(part.end).is_none()
                    && part.start.checked_sub(1).is_none_or(|s| grams.of(s).is_none())
            );
        }
    }
}
