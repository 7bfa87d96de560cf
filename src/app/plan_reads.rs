//! The rates of reads by plan. A read waits for nothing to learn its rate: it goes by what is known, which is asked for anew
//! meanwhile when it is a second old. So reads go on at the known rates while the event log does not answer.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use orgstream_events::PlanName;

use super::submit::Gateway;

/// The time for which a rate counts.
const LOOK: Duration = Duration::from_secs(1);
/// Plans whose rates are known, at most; with more of them all are asked for again.
const PLANS: usize = 1_000;

#[derive(Clone, Copy)]
struct Known {
    rate: Option<NonZeroU32>,
    asked_at: Instant,
}

/// The rates as this process knows them. One per process.
#[derive(Clone, Default)]
pub struct PlanReads(Arc<Mutex<HashMap<PlanName, Known>>>);

impl PlanReads {
    /// Returns the reads per second that a plan allows, as far as that is known; none without a limit.
    pub fn of(&self, gateway: &Arc<Gateway>, plan: &PlanName) -> Option<NonZeroU32> {
        let asked_at = Instant::now();
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = match plans.get_mut(plan) {
            Some(known) if known.asked_at.elapsed() < LOOK => return known.rate,
            Some(known) => {
                known.asked_at = asked_at;
                known.rate
            }
            None => {
                if plans.len() >= PLANS {
                    plans.clear();
                }
                plans.insert(plan.clone(), Known { rate: None, asked_at });
                None
            }
        };
        drop(plans);
        let (here, gateway, plan) = (self.clone(), Arc::clone(gateway), plan.clone());
        tokio::spawn(async move {
            // Without an answer what is known goes on to count.
            if let Ok(rate) = gateway.handler().reads_of_plan(&plan).await {
                let mut plans = here.0.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(known) = plans.get_mut(&plan) {
                    known.rate = rate;
                }
            }
        });
        rate
    }
}
