/* onside_attribution--0.9--1.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION onside_attribution UPDATE TO '1.0'" to load this file. \quit
