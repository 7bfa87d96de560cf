//! All pipelines, declared once: the consumers of every org's stream, each with tables, checkpoints, lanes and parked
//! messages of its own.

use std::{
    fmt,
    ops::{Index, IndexMut},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

macro_rules! pipelines {
    ($(#[doc = $description:literal] $variant:ident = $name:literal { versions: $versions:literal, log: $log:literal };)*) => {
        /// The pipelines that consume every org's stream. The names are permanent: checkpoints and decisions about
        /// parked events have them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Pipeline {
            $(#[doc = $description] #[serde(rename = $name)] $variant,)*
        }

        impl Pipeline {
            /// All names.
            pub const NAMES: &[&str] = &[$($name),*];

            /// All pipelines.
            pub const ALL: [Self; Self::NAMES.len()] = [$(Self::$variant),*];

            /// Returns the permanent name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns what it writes, in a sentence.
            pub fn description(self) -> &'static str {
                match self {
                    $(Self::$variant => $description.trim_ascii(),)*
                }
            }

            /// Whether its rows have versions: a rebuild makes another one from the audit log, and shows that.
            pub const fn has_versions(self) -> bool {
                match self {
                    $(Self::$variant => $versions,)*
                }
            }

            /// Whether it is the audit log: appended to and never changed, with a mark in the place of each message
            /// that could not be applied.
            pub const fn is_log(self) -> bool {
                match self {
                    $(Self::$variant => $log,)*
                }
            }
        }

        /// A value for each pipeline.
        #[expect(non_snake_case, reason = "a field for each pipeline, by the same name")]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct PerPipeline<T> {
            $($variant: T,)*
        }

        impl<T> PerPipeline<T> {
            /// Makes the value of each pipeline.
            pub fn of(mut make: impl FnMut(Pipeline) -> T) -> Self {
                Self { $($variant: make(Pipeline::$variant),)* }
            }
        }

        impl<T> Index<Pipeline> for PerPipeline<T> {
            type Output = T;

            fn index(&self, pipeline: Pipeline) -> &T {
                match pipeline {
                    $(Pipeline::$variant => &self.$variant,)*
                }
            }
        }

        impl<T> IndexMut<Pipeline> for PerPipeline<T> {
            fn index_mut(&mut self, pipeline: Pipeline) -> &mut T {
                match pipeline {
                    $(Pipeline::$variant => &mut self.$variant,)*
                }
            }
        }
    };
}

// A pipeline that is added starts at the beginning of every shard, and catches up beside the others. The recipe is in
// CONTRIBUTING.md.
pipelines! {
    /// The tables behind the queries.
    ReadModels = "read_models" { versions: true, log: false };
    /// The append-only audit log.
    Audit = "audit" { versions: false, log: true };
    /// The index of words by which records are found.
    Search = "search" { versions: true, log: false };
}

impl<T> PerPipeline<T> {
    /// Returns all values, with their pipelines.
    pub fn iter(&self) -> impl Iterator<Item = (Pipeline, &T)> {
        Pipeline::ALL.into_iter().map(|pipeline| (pipeline, &self[pipeline]))
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pipeline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|pipeline| pipeline.name() == text)
            .ok_or_else(|| format!("{text:?} is not a pipeline: {}", Self::NAMES.join(" or ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_wherever_it_is_written() {
        for pipeline in Pipeline::ALL {
            assert_eq!(pipeline.name().parse(), Ok(pipeline));
            assert_eq!(serde_json::to_value(pipeline).unwrap(), pipeline.name());
            assert!(pipeline.description().ends_with('.'), "{pipeline}");
        }
        let refusal = "nothing".parse::<Pipeline>().unwrap_err();
        assert!(Pipeline::NAMES.iter().all(|name| refusal.contains(name)), "{refusal}");
    }

    #[test]
    fn one_pipeline_is_the_log_and_it_has_no_versions() {
        // Its tables are one set, which two pipelines would both write.
        assert_eq!(Pipeline::ALL.into_iter().filter(|pipeline| pipeline.is_log()).count(), 1);
        assert!(!Pipeline::ALL.into_iter().any(|pipeline| pipeline.is_log() && pipeline.has_versions()));
    }

    #[test]
    fn each_pipeline_has_a_value_of_its_own() {
        let mut counts = PerPipeline::of(|pipeline| pipeline.name().len());
        counts[Pipeline::Audit] += 1;
        assert_eq!((counts[Pipeline::ReadModels], counts[Pipeline::Audit]), (11, 6));
        assert!(counts.iter().map(|(pipeline, _)| pipeline).eq(Pipeline::ALL));
    }
}
