//! Tests of the crate through its public interface, as one program: a program for each module would be linked with all of it.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions too")]

mod adapters;
mod agreement;
mod chat_template;
mod combine;
mod compute;
mod diff;
mod experts;
mod extract;
mod formula;
mod fp8;
mod golden;
mod granularity;
mod inputs;
mod inspect;
mod made;
mod methods;
mod page;
mod regmean;
mod resident;
mod run;
mod slices;
mod stages;
mod survival;
mod transplant;
mod vocabulary;
