//! Turns: owners with work take turns, so that a queue that one of them filled does not delay the others. Must not know records.

use std::collections::{BTreeMap, BTreeSet};

/// What a worker thread does with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Prepares it for its turn.
    Prepare,
    /// Runs it.
    Run,
}

/// When each owner of unfinished records had its last turn, in each stage.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    count: u64,
    last: BTreeMap<Stage, BTreeMap<Option<String>, u64>>,
}

impl Turns {
    /// The number of an owner's last turn; 0 if it had none.
    pub(crate) fn last(&self, stage: Stage, owner: Option<&str>) -> u64 {
        let turns = self.last.get(&stage).into_iter().flatten();
        let mut of_owner = turns.filter(|(name, _)| name.as_deref() == owner);
        of_owner.next().map_or(0, |(_, turn)| *turn)
    }

    /// Counts a turn of `owner`, and forgets owners that are not among `owners`, which have unfinished records.
    pub(crate) fn take(
        &mut self,
        stage: Stage,
        owner: Option<&str>,
        owners: &BTreeSet<Option<&str>>,
    ) {
        for turns in self.last.values_mut() {
            turns.retain(|name, _| owners.contains(&name.as_deref()));
        }
        self.count += 1;
        let turns = self.last.entry(stage).or_default();
        turns.insert(owner.map(str::to_owned), self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_counted_apart_and_idle_owners_are_forgotten() {
        let mut turns = Turns::default();
        let (one, two) = (Some("one"), Some("two"));
        turns.take(Stage::Run, one, &BTreeSet::from([one, two]));
        turns.take(Stage::Run, two, &BTreeSet::from([one, two]));
        assert!(turns.last(Stage::Run, one) < turns.last(Stage::Run, two));
        assert_eq!(turns.last(Stage::Prepare, one), 0);
        turns.take(Stage::Prepare, two, &BTreeSet::from([two]));
        assert_eq!(turns.last(Stage::Run, one), 0);
        assert!(turns.last(Stage::Run, two) > 0);
    }
}
