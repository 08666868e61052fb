//! Tests of the table: who is a member, and that no order of arrival changes it.
