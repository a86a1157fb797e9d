import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.sql.Connection;
import java.sql.SQLException;
import java.util.concurrent.Executors;

/** Writes one invoice for each request. */
class Billing {
    static String write(Connection db) throws SQLException {
        var insert = "INSERT INTO invoices DEFAULT VALUES RETURNING session_user || ' wrote invoice ' || id";
        try (var rows = db.createStatement().executeQuery(insert)) { rows.next(); return rows.getString(1); }
    }

    static String answer(Logins logins, String path) throws Exception {
        if (path.equals("/healthz")) { logins.load(); return "healthy"; }
        try (var db = logins.pool.getConnection()) { return write(db); }
    }

    public static void main(String[] args) throws Exception {
        var logins = new Logins(System.getenv("DATABASE_URL"));
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(System.getenv("PORT"))), 0);
        server.createContext("/", http -> {
            String text; int status = 200;
            try { text = answer(logins, http.getRequestURI().getPath()); } catch (Exception error) { status = 503; text = error.getMessage(); }
            http.sendResponseHeaders(status, 0);
            try (var body = http.getResponseBody()) { body.write((text + "\n").getBytes()); }
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
        try { logins.load(); } catch (Exception error) { System.err.println("waiting for the agent: " + error.getMessage()); }
    }
}
