// Writes one invoice for each request. For `keyward agent`: it keeps the file CREDENTIAL and asks `/healthz` whether a new value works.
const { readFileSync } = require('node:fs');
const http = require('node:http');
const pg = require('pg');

const WRITE = "INSERT INTO invoices DEFAULT VALUES RETURNING session_user || ' wrote invoice ' || id AS answer";
let login; // the newest that was proven to work: each new connection of the pool takes it
class Client extends pg.Client { constructor(options) { super({ ...options, ...login }); } }
const pool = new pg.Pool({ Client, max: 8, maxLifetimeSeconds: 2 }); // PGHOST, PGPORT and so on: from the environment

async function load() { // a fresh login and what the service really does, undone; only then is the value used
  const { username: user, password } = JSON.parse(readFileSync(process.env.CREDENTIAL));
  const trial = new pg.Client({ user, password });
  try { await trial.connect(); await trial.query(`BEGIN; ${WRITE}; ROLLBACK`); } finally { await trial.end(); }
  login = { user, password };
}

async function answer(url) {
  return url === '/healthz' ? (await load(), 'healthy') : (await pool.query(WRITE)).rows[0].answer;
}
pool.on('error', (error) => console.error(error.message)); // an idle connection broke: the pool opens another
http.createServer((request, response) => answer(request.url).then(
  (text) => response.end(`${text}\n`),
  (error) => { response.statusCode = 503; response.end(`${error.message}\n`); })).listen(process.env.PORT, '127.0.0.1');
load().catch((error) => console.error(`waiting for the agent: ${error.message}`));
