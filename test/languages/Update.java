// What executeUpdate says to a SELECT.
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;

public class Update {
    public static void main(String[] arguments) throws SQLException {
        try (Connection connection = DriverManager.getConnection(System.getenv("JDBC_DATABASE_URL"))) {
            connection.prepareStatement("SELECT onside_attribution.track('e', gen_random_uuid(), '{}')").executeUpdate();
        } catch (SQLException error) {
            System.out.println(error.getMessage());
        }
    }
}
